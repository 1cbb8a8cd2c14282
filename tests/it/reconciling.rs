//! `reconcile`: what never came by itself is got, and is one event beside whatever comes late.

mod binary;
mod github;
mod vercel;

use std::time::Duration;

use secrets::SecretText;
use serde_json::{Value, json};
use tests::backup_world::BackupWorld;
use tests::door_world::ServedDoor;
use tests::migration_world::{Github, TOKEN};
use worker::WorldConfig;
use worker::world::{Connections, GithubConnection, VercelConnection};

const VERCELS_SECRET: &str = "a secret of Vercel's webhook";

/// A house with both sources, a worker, and stubs of GitHub and Vercel whose clocks are the house's.
struct Site {
    world: BackupWorld,
    door: ServedDoor,
    github: Github,
    vercel: tests::vercel::Vercel,
}

impl Site {
    async fn open() -> Self {
        let (github, vercel) = (Github::default(), tests::vercel::Vercel::default());
        let token = |text| SecretText::parse(text).unwrap();
        let connections = Connections {
            github: Some(GithubConnection { token: token(TOKEN), api_url: github.start().await }),
            vercel: Some(VercelConnection {
                token: token(tests::vercel::TOKEN),
                team: Some(tests::vercel::TEAM.to_owned()),
                api_url: vercel.start().await,
            }),
        };
        let sources = ["github".to_owned(), "vercel".to_owned()].into();
        let world = BackupWorld::by_hand(WorldConfig { connections, sources, ..WorldConfig::default() }).await;
        let sources = json!({
            "github": {"secrets": [tests::github_hooks::SECRET]}, "vercel": {"secrets": [VERCELS_SECRET]},
        });
        let door = ServedDoor::open(&world.queue, &sources).await;
        let world = world.with_inlet(door.inlet()).await;
        let site = Self { world, door, github, vercel };
        site.github.hooks(|hooks| hooks.url = Some(site.door.url("github")));
        // Somebody has listened for a while.
        site.pass(Duration::from_mins(30)).await;
        site
    }

    async fn pass(&self, time: Duration) {
        self.world.pass(time).await;
        let now = self.world.queue.clock().now();
        self.github.at(now);
        self.vercel.hub(|hub| hub.now = now.timestamp_millis());
    }

    /// Reconciles; the output.
    async fn reconcile(&self, args: &Value) -> Value {
        self.world.complete("reconcile", args).await
    }

    /// The kinds of all events, sorted: what is booked at one moment of a clock that stands still has no order.
    async fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<String> = self.door.events().await.into_iter().map(|view| view.event.kind).collect();
        kinds.sort();
        kinds
    }
}
