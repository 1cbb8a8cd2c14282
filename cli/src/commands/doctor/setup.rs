//! The setup, one thing after the other: what is found is said, and the next is looked at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use queue::ledger::{self, Look};
use queue::{OpenError, broker};
use schemas::Timestamp;
use secrets::vaults::VaultError;
use secrets::{ExposeSecret, Resolver, SecretString, SecretText};
use uuid::Uuid;
use worker::examination::Remark;
use worker::{Failure as Unwell, World, WorldConfig, ledger_copies};

use super::Line;
use crate::config::{Checked, Config, Finding};
use crate::failure::{Failure, with_causes};
use crate::rooms;

/// Nothing may take longer to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Signatures with a time are refused when it is five minutes off; far below that, somebody should set the clock.
const CLOCK_NOTE: Duration = Duration::from_secs(5);
const CLOCK_WRONG: Duration = Duration::from_mins(2);

/// A running porter writes something down at least each minute, and copies it.
const COPY_NOTE: Duration = Duration::from_mins(5);

/// What the ledger's copies are called.
const COPIES: &str = "ledger's copies";

/// Room on a disk, in bytes: below the first somebody should make some, below the second deliveries or dumps will fail.
const ROOM_NOTE: u64 = 2 << 30;
const ROOM_WRONG: u64 = 200 << 20;

/// Looks at everything that the configuration names.
pub(super) async fn examine(path: &Path) -> Result<Vec<Line>, Failure> {
    let checked = Checked::file(path)?;
    let warnings: Vec<String> =
        checked.findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string).collect();
    let config = checked.config()?;
    let mut round = Round::default();
    round.add("configuration", [Remark::well(format!("{} is right", path.display()))]);
    round.add("configuration", warnings.into_iter().map(Remark::doubtful));
    let resolver = rooms::resolver(&config).await;
    round.look_at_ledger(&config, &resolver).await;
    round.look_at_broker(&config, &resolver).await;
    round.look_at_vault(&config, &resolver).await;
    round.look_at_secrets(&config, &resolver).await;
    round.look_at_disks(&config);
    let world = World::new(config.world.clone(), resolver, worker::world::http_client());
    Box::pin(round.look_at_copies(&config, &world)).await;
    Box::pin(round.look_outside(&config, &world)).await;
    Ok(round.lines)
}

#[derive(Default)]
struct Round {
    lines: Vec<Line>,
}

impl Round {
    fn add(&mut self, subject: &str, remarks: impl IntoIterator<Item = Remark>) {
        let line = |Remark { verdict, text }| Line { verdict, subject: subject.to_owned(), text };
        self.lines.extend(remarks.into_iter().map(line));
    }

    /// Adds what an examination found, or why it could not be made.
    fn add_found(&mut self, subject: &str, found: Result<Vec<Remark>, Unwell>) {
        match found {
            Ok(remarks) => self.add(subject, remarks),
            Err(failure) => self.add(subject, [Remark::ill(failure.words())]),
        }
    }

    /// Whether the vault opens, and knows what is to be rotated.
    async fn look_at_vault(&mut self, config: &Config, resolver: &Resolver) {
        let Some(vault) = resolver.vault() else { return };
        if let Some(Err(error)) = rooms::examine_file_vault(config).await {
            return self.add("vault", [Remark::ill(with_causes(&error))]);
        }
        let mut remarks = Vec::new();
        for rotation in config.world.rotations.values() {
            let name = &rotation.secret;
            remarks.push(match vault.describe(name).await {
                Ok(secret) if secret.managed => Remark::ill(format!("{name}: {}", VaultError::Managed)),
                Ok(_) => Remark::well(format!("{name} is there, to be rotated")),
                Err(error) => Remark::ill(format!("{name}: {}", with_causes(&error))),
            });
        }
        self.add("vault", remarks);
    }

    async fn look_at_ledger(&mut self, config: &Config, resolver: &Resolver) {
        let looked = match rooms::resolve_address(&config.queue.ledger, resolver, "[queue] ledger").await {
            Ok(address) => ledger::look(address.expose_secret()).await.map_err(|error| words(&error)),
            Err(failure) => Err(failure.to_string()),
        };
        match looked {
            Ok(Look { time, text }) => {
                self.add("ledger", [Remark::well(text)]);
                self.add("clock", time.map(|time| clock(time, Utc::now())));
            }
            Err(words) => self.add("ledger", [Remark::ill(words)]),
        }
    }

    async fn look_at_copies(&mut self, config: &Config, world: &World) {
        if config.queue.ledger.sqlite_path().is_none() {
            return;
        }
        let Some(name) = &config.queue.copy_to else {
            let words = "nothing copies it, so a lost machine takes it along: name a store in `copy_to` of [queue]";
            return self.add(COPIES, [Remark::doubtful(words)]);
        };
        let last = in_time(Box::pin(async { ledger_copies::last(&*world.store(name).await?).await }));
        self.add_found(COPIES, last.await.map(|last| vec![copies(last.map(|copy| copy.at), Utc::now())]));
    }

    async fn look_at_broker(&mut self, config: &Config, resolver: &Resolver) {
        let address = rooms::resolve_address(&config.queue.broker, resolver, "[queue] broker").await;
        self.look_for_broker("broker", address).await;
        if config.amqp.is_some() {
            let address = rooms::amqp_address(config, resolver).await;
            self.look_for_broker("other programs", address).await;
        }
    }

    async fn look_for_broker(&mut self, subject: &str, address: Result<SecretString, Failure>) {
        let opened = match address {
            Ok(address) => broker::open(address.expose_secret()).await.map_err(|error| words(&error)),
            Err(failure) => Err(failure.to_string()),
        };
        match opened {
            Ok(broker) => {
                broker.close().await;
                self.add(subject, [Remark::well("answers")]);
            }
            Err(words) => self.add(subject, [Remark::ill(words)]),
        }
    }

    async fn look_at_secrets(&mut self, config: &Config, resolver: &Resolver) {
        for source in config.sources.iter() {
            let subject = format!("source {}", source.name());
            self.resolve(&subject, source.secrets(), "its deliveries cannot be verified", resolver).await;
        }
        let WorldConfig { credentials, programs, connections, .. } = &config.world;
        for (name, credentials) in credentials {
            let subject = format!("credentials {name}");
            self.resolve(&subject, credentials.headers.values(), "nothing can be called with them", resolver).await;
        }
        for (name, program) in programs {
            self.resolve(&format!("program {name}"), program.env.values(), "it cannot be started", resolver).await;
        }
        let github = connections.github.as_ref().map(|github| &github.token);
        self.resolve("connection github", github, "GitHub cannot be asked", resolver).await;
        let heartbeat = config.heartbeat.as_ref().map(|heartbeat| &heartbeat.url);
        self.resolve("heartbeat", heartbeat, "no dead-man's switch will hear of this process", resolver).await;
    }

    /// Whether secrets have values; `without`: what follows if one has none.
    async fn resolve<'s>(
        &mut self,
        subject: &str,
        secrets: impl IntoIterator<Item = &'s SecretText>,
        without: &str,
        resolver: &Resolver,
    ) {
        for secret in secrets {
            let remark = match resolver.resolve(secret).await {
                Ok(_) => Remark::well("its secret has a value"),
                Err(error) => Remark::ill(format!("{without}: {}", with_causes(&error))),
            };
            self.add(subject, [remark]);
        }
    }

    fn look_at_disks(&mut self, config: &Config) {
        let ledger = config.queue.ledger.sqlite_path();
        let folders = [
            ("spool", Some(config.server.spool.clone())),
            ("ledger's disk", ledger.and_then(|path| path.parent().map(Path::to_path_buf))),
            ("temporary files", Some(std::env::temp_dir())),
        ];
        for (subject, folder) in folders {
            self.add(subject, folder.map(|folder| room(&folder)));
        }
    }

    async fn look_outside(&mut self, config: &Config, world: &World) {
        for name in config.world.databases.keys() {
            let examined = in_time(async { world.database(name).await?.examine().await }).await;
            self.add_found(&format!("database {name}"), examined);
        }
        for name in config.world.stores.keys() {
            let key = format!("nightporter-doctor/{}", Uuid::new_v4());
            let examined = in_time(Box::pin(async { worker::stores::examine(&*world.store(name).await?, &key).await }));
            self.add_found(&format!("store {name}"), examined.await);
        }
        for name in config.world.channels.keys() {
            let opened = in_time(async { world.channel(name).await }).await;
            let found = opened.map(|_| vec![Remark::well("its address is known; nothing was sent")]);
            self.add_found(&format!("channel {name}"), found);
        }
        if world.vercel().is_some() {
            let examined = in_time(Box::pin(worker::vercel::examine(world, Utc::now()))).await;
            self.add_found("vercel", examined);
        }
    }
}

async fn in_time<T>(examined: impl Future<Output = Result<T, Unwell>>) -> Result<T, Unwell> {
    let late = |_| Err(Unwell::retry(anyhow::anyhow!("no answer within {PATIENCE:?}")));
    tokio::time::timeout(PATIENCE, examined).await.unwrap_or_else(late)
}

fn words(error: &OpenError) -> String {
    with_causes(error)
}

/// Whether the ledger's last copy is as new as it should be.
fn copies(last: Option<Timestamp>, now: Timestamp) -> Remark {
    let Some(last) = last else { return Remark::doubtful("there is none yet: `up` begins with one") };
    let age = (now - last).to_std().unwrap_or_default();
    let said = format!("the last one shows the ledger as it was {} s ago", age.as_secs());
    if age < COPY_NOTE {
        return Remark::well(said);
    }
    Remark::doubtful(format!("{said}: right only if `up` does not run, or nothing changed since"))
}

/// How far the ledger's clock and this machine's are apart.
fn clock(ledger: Timestamp, here: Timestamp) -> Remark {
    let apart = (ledger - here).abs().to_std().unwrap_or_default();
    let said = format!("the ledger's clock and this machine's are {} ms apart", apart.as_millis());
    match apart {
        _ if apart >= CLOCK_WRONG => {
            Remark::ill(format!("{said}: deliveries with a signed time will not be believed; set the clock (NTP)"))
        }
        _ if apart >= CLOCK_NOTE => Remark::doubtful(format!("{said}; set the clock (NTP)")),
        _ => Remark::well(said),
    }
}

/// How much room there is where this folder lies, or will lie.
fn room(folder: &Path) -> Remark {
    let here = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() };
    let there = here.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let free = match rustix::fs::statvfs(there) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => return Remark::ill(format!("{} cannot be looked at: {error}", here.display())),
    };
    let said = format!("{}: {} MiB are free", here.display(), free >> 20);
    match free {
        _ if free < ROOM_WRONG => Remark::ill(format!("{said}; make room")),
        _ if free < ROOM_NOTE => Remark::doubtful(format!("{said}; make room")),
        _ => Remark::well(said),
    }
}

#[cfg(test)]
mod tests {
    use worker::examination::Verdict;

    use super::*;

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off_in_either_direction() {
        let here = Utc::now();
        let verdict = |seconds: i64| clock(here + chrono::TimeDelta::seconds(seconds), here).verdict;
        assert_eq!([0, 4, -4].map(verdict), [Verdict::Well; 3]);
        assert_eq!([5, -119].map(verdict), [Verdict::Doubtful; 2]);
        assert_eq!([120, -3600].map(verdict), [Verdict::Ill; 2]);
    }

    #[test]
    fn a_copy_is_judged_by_its_age() {
        let now = Utc::now();
        let verdict = |minutes: i64| copies(Some(now - chrono::TimeDelta::minutes(minutes)), now).verdict;
        assert_eq!(
            [verdict(1), verdict(6), copies(None, now).verdict],
            [Verdict::Well, Verdict::Doubtful, Verdict::Doubtful]
        );
    }

    #[test]
    fn the_room_of_a_folder_that_is_not_there_yet_is_its_parents() {
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(room(&folder.path().join("not/there/yet")).text, "");
        assert!(room(&folder.path().join("not/there/yet")).text.contains("MiB are free"));
        assert!(room(Path::new("")).text.contains("MiB are free"), "the current folder has no name");
    }
}
