//! How old the newest backups are. Stores are listed seldom, beside the scrapes, and only where somebody scrapes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use schemas::Timestamp;
use tokio::time::{Instant, timeout};
use tracing::warn;
use worker::World;
use worker::backups::ages::{self, Newest};

/// Stores are listed at most so often: each list costs money, and backups come seldom.
const LIST_EVERY: Duration = Duration::from_mins(5);

/// A store that takes longer to be listed is away.
const PATIENCE: Duration = Duration::from_mins(1);

/// The ages of the backups in all stores.
#[derive(Clone)]
pub(super) struct Backups(Arc<Inner>);

struct Inner {
    world: Arc<World>,
    stores: Vec<String>,
    /// What was found, by store; none of one that was away.
    found: Mutex<BTreeMap<String, Option<BTreeMap<String, Newest>>>>,
    listed: Mutex<Option<Instant>>,
    up: Family<OfStore, Gauge>,
    newest: Family<OfDatabase, Gauge<f64, AtomicU64>>,
    proven: Family<OfDatabase, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStore {
    store: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDatabase {
    database: String,
    store: String,
}

impl Backups {
    pub(super) fn new(world: Arc<World>, stores: Vec<String>) -> Self {
        Self(Arc::new(Inner {
            world,
            stores,
            found: Mutex::default(),
            listed: Mutex::default(),
            up: Family::default(),
            newest: Family::default(),
            proven: Family::default(),
        }))
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("store_up", "Whether a store could be listed", self.0.up.clone());
        let help = "How old the newest backup of a database in a store is";
        registry.register_with_unit("newest_backup_age", help, Unit::Seconds, self.0.newest.clone());
        let help = "How old the newest backup is that a restore has proven; infinite where none is";
        registry.register_with_unit("newest_proven_backup_age", help, Unit::Seconds, self.0.proven.clone());
    }

    /// Shows what is known, and has the stores listed again where that is long ago. A scrape does not wait for a store.
    pub(super) fn show(&self, now: Timestamp) {
        let Inner { found, up, newest, proven, .. } = &*self.0;
        newest.clear();
        proven.clear();
        for (store, backups) in &*lock(found) {
            up.get_or_create(&OfStore { store: store.clone() }).set(i64::from(backups.is_some()));
            for (database, of_it) in backups.iter().flatten() {
                let labels = OfDatabase { database: database.clone(), store: store.clone() };
                newest.get_or_create(&labels).set(age(of_it.backup, now));
                let age = of_it.proven.map_or(f64::INFINITY, |proven| age(proven, now));
                proven.get_or_create(&labels).set(age);
            }
        }
        let mut listed = lock(&self.0.listed);
        if listed.is_none_or(|listed| listed.elapsed() >= LIST_EVERY) && !self.0.stores.is_empty() {
            *listed = Some(Instant::now());
            tokio::spawn(Arc::clone(&self.0).list());
        }
    }
}

impl Inner {
    async fn list(self: Arc<Self>) {
        for name in &self.stores {
            let listing = timeout(PATIENCE, async { ages::newest(&*self.world.store(name).await?).await });
            let backups = match listing.await {
                Ok(Ok(backups)) => Some(backups),
                Ok(Err(failure)) => {
                    warn!(store = name, "it cannot be told how old its backups are: {}", failure.words());
                    None
                }
                Err(_) => {
                    warn!(store = name, "it cannot be told how old its backups are: no answer within {PATIENCE:?}");
                    None
                }
            };
            lock(&self.found).insert(name.clone(), backups);
        }
    }
}

fn age(of: Timestamp, now: Timestamp) -> f64 {
    (now - of).to_std().unwrap_or_default().as_secs_f64()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
