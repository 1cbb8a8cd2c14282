//! Opens what the roles work with: secrets, the queue, the world, the token.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use producer::{Door, DoorConfig, NotBooked, Scheduler, SchedulerConfig, Sources, Spool, SpoolLimits};
use queue::{NoticeOfDiscard, NoticeOfForgetting, NoticeOfSilence, Queue, QueueConfig};
use schemas::Catalog;
use secrets::vaults::{AwsVault, FileVault, Vault, VaultError};
use secrets::{ExposeSecret, Resolver, SecretString, SecretText};
use serde_json::Value;
use tracing::warn;
use uuid::Uuid;
use worker::ledger_copies::{Copier, CopierConfig, CopyMetrics};
use worker::notice::Resolution;
use worker::world::Inlet;

use crate::client::token_path;
use crate::config::{Address, Config, VaultAddress, VaultSection, sqlite_path};
use crate::failure::{Failure, with_causes};
use crate::server::Roles;

/// Who may read the token's file: its owner.
const PRIVATE: u32 = 0o600;

/// The queue that is configured, for processes of these roles.
pub(crate) async fn open_queue(config: &Config, resolver: &Resolver, roles: Roles) -> Result<(Queue, String), Failure> {
    let ledger = resolve_address(&config.queue.ledger, resolver, "[queue] ledger").await?;
    let broker = resolve_address(&config.queue.broker, resolver, "[queue] broker").await?;
    let (ledger_text, broker_text) = (ledger.expose_secret(), broker.expose_secret());
    if ledger_text.starts_with("sqlite:") && roles != Roles::UP {
        return Err(Failure::usage("a SQLite ledger is one process's: `serve` and `work` would be two")
            .help("run `nightporter up`, or take `postgres://...` as the ledger"));
    }
    if ledger_text.starts_with("sqlite:") && broker_text.starts_with("amqp") {
        return Err(Failure::usage("a SQLite ledger is one process's: a broker has nobody to tell")
            .help("leave `broker` out, or take `postgres://...` as the ledger"));
    }
    let queue = QueueConfig {
        notice: notice(config),
        keep: config.queue.keep.into(),
        before_forgetting: before_forgetting(config),
        ..QueueConfig::new(ledger_text, broker_text)
    };
    let queue = Queue::open(&queue).await?;
    Ok((queue, ledger_text.to_owned()))
}

pub(crate) async fn resolve_address(
    address: &Address,
    resolver: &Resolver,
    key: &str,
) -> Result<SecretString, Failure> {
    match (address.plain(), &address.secret) {
        (Some(plain), _) => Ok(plain.into()),
        (None, Some(secret)) => resolve(secret, resolver, key).await,
        (None, None) => Err(Failure::usage(format!("{key} is empty"))),
    }
}

/// Who is told about discarded jobs.
pub(crate) fn notice(config: &Config) -> Option<NoticeOfDiscard> {
    let channel = config.defaults.on_failure.as_ref()?;
    Some(worker::notice::on_discard(channel, Catalog::clone(&config.startable.catalog)))
}

/// Who is told before events that wait for a person are forgotten.
fn before_forgetting(config: &Config) -> Option<NoticeOfForgetting> {
    let channel = config.defaults.on_failure.as_ref()?;
    Some(worker::notice::before_forgetting(channel, Catalog::clone(&config.startable.catalog)))
}

/// What fires the schedules that are configured. Without any there is one too: producers with an older configuration are
/// to hear that theirs are gone.
pub(crate) fn scheduler(config: &Config, queue: Queue) -> Scheduler {
    let channel = config.defaults.on_failure.as_ref();
    let catalog = || Catalog::clone(&config.startable.catalog);
    Scheduler::new(SchedulerConfig {
        queue,
        schedules: config.schedules.clone(),
        startable: config.startable.clone(),
        config_digest: config.digest.clone(),
        notice: channel.map(|channel| worker::notice::on_missed(channel, catalog())),
    })
}

/// Where other programs are met.
pub(crate) async fn amqp_address(config: &Config, resolver: &Resolver) -> Result<SecretString, Failure> {
    match config.amqp.as_ref().and_then(|amqp| amqp.url.as_ref()) {
        Some(url) => resolve_address(url, resolver, "[amqp] url").await,
        None => resolve_address(&config.queue.broker, resolver, "[queue] broker").await,
    }
}

/// Who is told that a discarded job is done after all.
pub(crate) fn resolution(config: &Config) -> Option<Resolution> {
    let channel = config.defaults.on_failure.as_ref()?;
    Some(worker::notice::on_completion(channel, Catalog::clone(&config.startable.catalog)))
}

/// Who is told about sources that go silent.
pub(crate) fn silence(config: &Config) -> Option<NoticeOfSilence> {
    let channel = config.defaults.on_failure.as_ref()?;
    Some(worker::notice::on_silence(channel, Catalog::clone(&config.startable.catalog)))
}

/// The public door that is configured, which takes the routes; in a process where nobody delivers, the way in for what jobs
/// find.
pub(crate) fn door(
    config: &mut Config,
    queue: Queue,
    resolver: Arc<Resolver>,
    delivered_at: bool,
) -> Result<Door, Failure> {
    let opened = || Spool::open(&config.server.spool, SpoolLimits::default());
    let spool = if delivered_at { opened() } else { Ok(Spool::closed()) };
    let spool =
        spool.map_err(|error| Failure::failed(with_causes(&error)).help("[server] spool names another folder"))?;
    Ok(Door::new(DoorConfig {
        queue,
        sources: config.sources.clone(),
        routes: std::mem::take(&mut config.routes),
        startable: config.startable.clone(),
        resolver,
        config_digest: config.digest.clone(),
        spool,
    }))
}

/// The door as jobs have it.
pub(crate) struct WayIn(pub(crate) Door);

#[async_trait]
impl Inlet for WayIn {
    async fn take(&self, source: &str, body: &Value) -> Result<bool, worker::Failure> {
        match self.0.take_found(source, body).await {
            Ok(answer) => Ok(!answer.duplicate),
            Err(error @ NotBooked::Never(_)) => Err(worker::Failure::discard(error)),
            Err(error @ NotBooked::NotNow(_)) => Err(worker::Failure::retry(error)),
        }
    }
}

/// What copies the ledger, where that is configured.
pub(crate) fn copier(config: &Config, queue: Queue, secrets: Arc<Resolver>, metrics: CopyMetrics) -> Option<Copier> {
    let store_name = config.queue.copy_to.clone()?;
    let channel = config.defaults.on_failure.as_ref();
    let catalog = || Catalog::clone(&config.startable.catalog);
    Some(Copier::new(CopierConfig {
        queue,
        store: config.world.stores.get(&store_name)?.clone(),
        store_name,
        secrets,
        every: config.queue.copy_every.0,
        machine: machine(),
        stale_after: worker::ledger_copies::STALE,
        metrics,
        notice: channel.map(|channel| worker::notice::on_copies(channel, catalog())),
    }))
}

/// This machine's name, for people.
pub(crate) fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unnamed".to_owned(),
        name => name.to_owned(),
    }
}

/// Who sits at this command line, as the system says it.
pub(crate) fn user() -> String {
    std::env::var("USER").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// Says at the start what every delivery would say later: that a secret of a source has no value.
pub(crate) async fn warn_of_missing_secrets(sources: &Sources, resolver: &Resolver) {
    for source in sources.iter() {
        for secret in source.secrets() {
            if let Err(error) = resolver.resolve(secret).await {
                warn!(source = source.name(), "its deliveries cannot be verified: {}", with_causes(&error));
            }
        }
    }
}

/// The value of a secret that is needed to start.
pub(crate) async fn resolve(secret: &SecretText, resolver: &Resolver, what: &str) -> Result<SecretString, Failure> {
    resolver.resolve(secret).await.map_err(|error| {
        let why = format!("{what}: {}", with_causes(&error));
        if error.is_transient() { Failure::unavailable(why) } else { Failure::usage(why) }
    })
}

/// What resolves the configuration's secrets.
pub(crate) async fn resolver(config: &Config) -> Arc<Resolver> {
    Arc::new(Resolver::new(vault(config).await))
}

/// The vault that is configured.
async fn vault(config: &Config) -> Option<Arc<dyn Vault>> {
    let section = config.vault.as_ref()?;
    match &section.url {
        VaultAddress::Aws { region, endpoint } => {
            Some(Arc::new(AwsVault::open(region.clone(), endpoint.clone()).await))
        }
        VaultAddress::File(path) => Some(Arc::new(file_vault(section, path)?)),
    }
}

/// Whether the vault opens and has a second key, where it is a file.
pub(crate) async fn examine_file_vault(config: &Config) -> Option<Result<(), VaultError>> {
    let section = config.vault.as_ref()?;
    let VaultAddress::File(path) = &section.url else { return None };
    Some(file_vault(section, path)?.examine().await)
}

/// The vault in that file.
pub(crate) fn file_vault(section: &VaultSection, path: &Path) -> Option<FileVault> {
    Some(FileVault::new(path, section.identity.clone()?, section.recipients.clone()))
}

/// The token that callers of the API show: the configured one, or one in a file beside the `SQLite` ledger, made where
/// there is none.
pub(crate) async fn token(config: &Config, resolver: &Resolver, ledger: &str) -> Result<Arc<str>, Failure> {
    if let Some(token) = &config.operators.token {
        let token = resolve(token, resolver, "[operators] token").await?;
        let text = token.expose_secret();
        if text.len() < SHORTEST_TOKEN {
            return Err(Failure::usage(format!("[operators] token is shorter than {SHORTEST_TOKEN} characters"))
                .help("make one with `openssl rand -hex 32`"));
        }
        return Ok(text.into());
    }
    let Some(path) = sqlite_path(ledger) else {
        return Err(Failure::usage("`token` is missing in [operators]: several processes need the same one"));
    };
    let path = token_path(&path);
    own_token(&path).map_err(|error| Failure::failed(format!("cannot keep the token in {}: {error}", path.display())))
}

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

fn own_token(path: &Path) -> std::io::Result<Arc<str>> {
    match OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path) {
        Ok(mut file) => {
            // Twice 122 random bits from the system.
            let token = format!("np_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            writeln!(file, "{token}")?;
            file.sync_all()?;
            Ok(token.into())
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(PRIVATE))?;
            let text = std::fs::read_to_string(path)?;
            if text.trim().len() < SHORTEST_TOKEN {
                // It was cut off while being written.
                std::fs::remove_file(path)?;
                return own_token(path);
            }
            Ok(text.trim().into())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("np.db.token");
        let token = own_token(&path).unwrap();
        assert!(token.len() > 60);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(own_token(&path).unwrap(), token);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
    }

    #[test]
    fn a_token_that_was_cut_off_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("np.db.token");
        std::fs::write(&path, "").unwrap();
        assert!(own_token(&path).unwrap().len() > 60);
    }
}
