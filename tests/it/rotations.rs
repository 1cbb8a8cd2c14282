//! `rotate`: secrets are exchanged, and nobody is locked out on the way.

mod aws_key;
mod configuration;
mod engine;
mod github_secret;
mod kills;
mod postgres;
mod vercel;
mod webhook;

use serde_json::{Value, json};
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;

/// Runs each check on each vault.
macro_rules! on_every_vault {
    ($($check:ident),* $(,)?) => {
        mod in_aws {
            $(#[tokio::test] async fn $check() { super::$check(tests::vaults::TestVault::aws().await).await; })*
        }
        mod in_a_file {
            $(#[tokio::test] async fn $check() { super::$check(tests::vaults::TestVault::file().await).await; })*
        }
    };
}
pub(crate) use on_every_vault;

/// A ring with one key, rotated with these consumers.
async fn ring(t: TestVault, consumers: Value) -> RotationWorld {
    let rotation = json!({"random_key": {}, "consumers": consumers});
    RotationWorld::new(t, r#"{"key": "the-first-canary", "use": "sessions"}"#, rotation, None).await
}
