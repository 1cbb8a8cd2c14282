//! The copier: copies the ledger into a store, again and again.
//!
//! Twice is safe: every object has a name of its own, and none is overwritten. What was uploaded and has no manifest is part
//! of no copy. After a failure, and after each start, a new line begins with a whole copy, so what is known of the last one
//! need not be known any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use queue::Queue;
use queue::kill_point::reached;
use queue::ledger::{Snapped, Snapshot};
use schemas::{Key, NewJob, Timestamp};
use secrets::Resolver;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::blocks::{Blocks, Changed};
use super::upload::{send, store_fed};
use super::{
    Claim, Claimant, Copy, CopyMetrics, LINES_KEPT, PREFIX, Taken, VERSION, claims, folder_of, highest, line_of, lines,
    manifest_key, read_copy, take,
};
use crate::backups::{Data, Seal};
use crate::handler::{Failure, OrFail};
use crate::stores::{self, Put, Store, StoreConfig};

/// A copy that takes longer is given up: a snapshot keeps the ledger's log from being emptied.
const DEADLINE: Duration = Duration::from_mins(15);
/// What is to be copied is copied within this when the process stops.
const LAST: Duration = Duration::from_secs(20);
/// People are told when the last copy is older than this.
pub const STALE: Duration = Duration::from_mins(5);
/// The scope of the keys of what people were told, by which the next process knows whether they still think so.
const TOLD: &str = "ledger copies";
/// How such a key ends where something was wrong.
const WRONG: &str = " wrong";
/// So long it is known: longer than any message goes on trying.
const MEMORY: Duration = Duration::from_hours(24 * 40);
/// More such keys there are not.
const MOST_KEYS: u32 = 10_000;
/// A line does not grow longer: what it takes to read it back stays small.
const LONGEST_LINE: u32 = 500;
/// Where more changed, a whole copy is made.
const LARGEST_PART: usize = 64 << 20;
/// A line whose parts take more room than its whole copy ends, but not for less than this.
const SMALL: u64 = 4 << 20;

/// What people are to hear of the copies.
#[derive(Clone, Debug)]
pub enum News {
    /// None was made for too long.
    Stale {
        /// How many minutes.
        minutes: u64,
        /// What was wrong the last time.
        reason: String,
    },
    /// They are made again.
    Fresh,
    /// Another porter went on from a copy of this ledger.
    Superseded(Claim),
}

/// Makes the job that tells people.
pub type NoticeOfCopies = Arc<dyn Fn(&News, Timestamp) -> Option<NewJob> + Send + Sync>;

/// What a copier is made of.
pub struct CopierConfig {
    /// The queue whose ledger is copied.
    pub queue: Queue,
    /// The store's name.
    pub store_name: String,
    /// The store.
    pub store: StoreConfig,
    /// Resolves its secrets.
    pub secrets: Arc<Resolver>,
    /// How often.
    pub every: Duration,
    /// This machine's name.
    pub machine: String,
    /// People are told when the last copy is older than this: [`STALE`].
    pub stale_after: Duration,
    /// Counts.
    pub metrics: CopyMetrics,
    /// Who is told.
    pub notice: Option<NoticeOfCopies>,
}

/// Copies the ledger.
pub struct Copier {
    config: CopierConfig,
    place: Option<Place>,
    line: Option<Growing>,
    /// Whether people were told that copies are too old, or that another porter has the word.
    told: Option<Told>,
    /// Whether it was looked what a process before this one told people.
    looked_back: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Stale,
    Superseded,
}

/// The store, open.
struct Place {
    store: Box<dyn Store>,
    seal: Seal,
}

/// The line that grows.
struct Growing {
    instance: Uuid,
    number: u32,
    copies: u32,
    blocks: Blocks,
    version: i64,
    whole: u64,
    parts: u64,
}

/// What a round came to.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Copied,
    Unchanged,
    Superseded(Claim),
}

impl Copier {
    /// A copier that has not copied yet.
    pub fn new(config: CopierConfig) -> Self {
        Self { config, place: None, line: None, told: None, looked_back: false }
    }

    /// Copies until told to stop, and then once more.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let begun = Instant::now();
            tokio::select! {
                () = self.look() => {}
                () = late(&stop) => return warn!("the ledger's copy was not finished before the end"),
            }
            // Half of the time is rest: a large ledger is copied less often.
            let rest = self.config.every.saturating_sub(begun.elapsed()).max(begun.elapsed());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(rest) => {}
            }
        }
        if timeout(LAST, self.look()).await.is_err() {
            warn!("what came last is in no copy of the ledger: the store did not take it in time");
        }
    }

    /// Copies once, and says what became of it.
    async fn look(&mut self) {
        let begun = Instant::now();
        let tried = match timeout(DEADLINE, self.copy()).await {
            Ok(tried) => tried,
            Err(_) => Err(Failure::retry(anyhow::anyhow!("it was not done within {DEADLINE:?}"))),
        };
        match tried {
            Ok(Round::Superseded(claim)) => self.keep_still(claim).await,
            Ok(round) => {
                debug!("the ledger's copy: {round:?}");
                self.config.metrics.good(begun);
                let left_open = self.left_open().await;
                if self.told.take().is_some() || left_open {
                    info!("the ledger is copied again");
                    self.tell(&News::Fresh).await;
                }
            }
            Err(failure) => self.fail(&failure).await,
        }
    }

    async fn copy(&mut self) -> Result<Round, Failure> {
        let place = match self.place.take() {
            Some(place) => place,
            None => self.open().await?,
        };
        let copied = self.copy_to(&place).await;
        // What failed may be mended by other secrets, or by another connection.
        if copied.is_ok() {
            self.place = Some(place);
        } else {
            self.line = None;
        }
        copied
    }

    async fn open(&self) -> Result<Place, Failure> {
        let CopierConfig { store_name, store, secrets, .. } = &self.config;
        let seal = Seal::of(store_name, store, secrets).await?;
        Ok(Place { store: stores::open(store_name, store, secrets).await?, seal })
    }

    async fn copy_to(&mut self, place: &Place) -> Result<Round, Failure> {
        let store = &*place.store;
        if let Some(line) = &self.line
            && let Some(claim) = highest(store).await?.filter(|claim| claim.instance != line.instance)
        {
            self.line = None;
            return Ok(Round::Superseded(claim));
        }
        let since = self.line.as_ref().map(|line| line.version);
        let snapshot = match self.config.queue.ledger().snapshot(since).await.or_retry("taking a snapshot")? {
            Snapped::NoFile => return Err(no_file()),
            Snapped::Unchanged => return Ok(Round::Unchanged),
            Snapped::Taken(snapshot) => Arc::new(snapshot),
        };
        reached("ledger copy taken");
        if let Some(line) = self.line.take_if(|line| line.is_full()) {
            debug!(line = line.number, copies = line.copies, "the line of copies is full");
        }
        match self.line.take() {
            Some(line) => self.go_on(place, line, snapshot).await,
            None => self.begin(place, snapshot).await,
        }
    }

    /// Begins a line with a whole copy.
    async fn begin(&mut self, place: &Place, snapshot: Arc<Snapshot>) -> Result<Round, Failure> {
        let (store, machine) = (&*place.store, self.config.machine.clone());
        // Where nobody has finished a copy yet, nothing is taken over.
        let takes_over = lines(store).await?.is_empty();
        let claimant = Claimant { instance: snapshot.instance, machine, takes_over };
        let number = match take(store, &claimant, snapshot.at).await? {
            Taken::Mine(number) => number,
            Taken::Others(claim) => return Ok(Round::Superseded(claim)),
        };
        reached("ledger copy claimed");
        let source = Arc::clone(&snapshot);
        let feed = move |to: &mpsc::Sender<Bytes>| Blocks::of(&*source, |bytes| send(to, bytes));
        let what = (data_key(number, 1, "whole", &place.seal), snapshot.bytes);
        let (data, blocks) = store_fed(store, &place.seal, what, feed).await?;
        reached("ledger copy uploaded");
        let stored = data.stored.bytes;
        self.publish(store, &snapshot, (number, 1), &blocks, data).await?;
        info!(line = number, bytes = snapshot.bytes, stored, "the ledger is copied whole");
        let (instance, version) = (snapshot.instance, snapshot.version);
        drop(snapshot);
        self.line = Some(Growing { instance, number, copies: 1, blocks, version, whole: stored, parts: 0 });
        sweep(store, number, self.config.queue.clock().now()).await;
        Ok(Round::Copied)
    }

    /// Adds to the line what changed.
    async fn go_on(&mut self, place: &Place, mut line: Growing, snapshot: Arc<Snapshot>) -> Result<Round, Failure> {
        let source = Arc::clone(&snapshot);
        let compared = tokio::task::spawn_blocking(move || {
            let changed = line.blocks.changed(&*source, LARGEST_PART);
            changed.map(|(changed, blocks)| (changed, std::mem::replace(&mut line.blocks, blocks), line))
        });
        let (changed, before, mut line) =
            compared.await.or_retry("comparing panicked")?.or_retry("reading the ledger")?;
        let changed = match changed {
            Changed::TooMuch => return self.begin(place, snapshot).await,
            Changed::These(changed) => changed,
        };
        line.version = snapshot.version;
        if changed.is_empty() && before == line.blocks {
            self.line = Some(line);
            return Ok(Round::Unchanged);
        }
        let (store, number) = (&*place.store, line.copies + 1);
        let what = (data_key(line.number, number, "part", &place.seal), changed.len() as u64);
        let (data, ()) =
            store_fed(store, &place.seal, what, move |to: &mpsc::Sender<Bytes>| send(to, &changed)).await?;
        reached("ledger copy uploaded");
        line.parts += data.stored.bytes;
        self.publish(store, &snapshot, (line.number, number), &line.blocks, data).await?;
        line.copies = number;
        self.line = Some(line);
        Ok(Round::Copied)
    }

    /// Writes the manifest, which makes the copy exist.
    async fn publish(
        &self,
        store: &dyn Store,
        snapshot: &Snapshot,
        (line, number): (u32, u32),
        blocks: &Blocks,
        data: Data,
    ) -> Result<(), Failure> {
        let stored = data.stored.bytes;
        let copy = Copy {
            version: VERSION,
            instance: snapshot.instance,
            line,
            number,
            at: snapshot.at,
            bytes: snapshot.bytes,
            root: blocks.root(),
            data,
            written_by: concat!("nightporter ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let text = serde_json::to_vec_pretty(&copy).or_discard("writing the manifest of a copy")?;
        // One that is there already is ours, if the answer to the first try was lost.
        if store.put_if_absent(&manifest_key(line, number), Bytes::from(text)).await? == Put::AlreadyThere
            && read_copy(store, line, number).await?.as_ref() != Some(&copy)
        {
            return Err(Failure::retry(anyhow::anyhow!("copy {number} of line {line} is there, and is another's")));
        }
        reached("ledger copied");
        self.config.metrics.stored(stored);
        Ok(())
    }

    async fn keep_still(&mut self, claim: Claim) {
        self.config.metrics.superseded();
        error!(
            line = claim.line,
            machine = claim.machine,
            since = %claim.at,
            "this ledger is copied no more: another one took over in the store `{}`. Stop this porter, if that one is to go \
             on; if this one is, stop that one and run `nightporter recover --this-ledger` here",
            self.config.store_name
        );
        if self.told != Some(Told::Superseded) {
            self.told = Some(Told::Superseded);
            self.tell(&News::Superseded(claim)).await;
        }
    }

    async fn fail(&mut self, failure: &Failure) {
        self.config.metrics.failed();
        let age = self.config.metrics.good_until().elapsed();
        let reason = failure.words();
        warn!(age_seconds = age.as_secs(), "the ledger could not be copied: {reason}");
        if age >= self.config.stale_after.max(self.config.every * 3) && self.told.is_none() {
            self.told = Some(Told::Stale);
            error!(age_seconds = age.as_secs(), "the last copy of the ledger is too old: {reason}");
            self.tell(&News::Stale { minutes: age.as_secs() / 60, reason }).await;
        }
    }

    /// Whether a process before this one told people of what was wrong, and could not tell them that it is over.
    async fn left_open(&mut self) -> bool {
        if self.looked_back {
            return false;
        }
        let queue = &self.config.queue;
        match queue.ledger().held(TOLD, MOST_KEYS, queue.clock().now()).await {
            Ok(told) => {
                self.looked_back = true;
                told.last().is_some_and(|last| last.key.ends_with(WRONG))
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "it is not known what people think of the copies");
                false
            }
        }
    }

    async fn tell(&self, news: &News) {
        let CopierConfig { queue, notice, .. } = &self.config;
        let Some(mut job) = notice.as_ref().and_then(|notice| notice(news, queue.clock().now())) else { return };
        // Ids are in the order of time.
        let end = if matches!(news, News::Fresh) { " right" } else { WRONG };
        job.key = Some(Key { scope: TOLD.into(), key: format!("{}{end}", job.id), hold: MEMORY });
        if let Err(error) = queue.enqueue(job).await {
            error!(error = &*error as &dyn std::error::Error, "nobody can be told about the ledger's copies");
        }
    }
}

impl Growing {
    fn is_full(&self) -> bool {
        self.copies >= LONGEST_LINE || self.parts > self.whole.max(SMALL)
    }
}

/// Waits until a copy that is under way when the process stops has had its time.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(LAST).await;
}

fn data_key(line: u32, number: u32, what: &str, seal: &Seal) -> String {
    let sealed = if seal.encryption().is_some() { ".age" } else { "" };
    format!("{}{number:06}-{}.{what}.zst{sealed}", folder_of(line), Uuid::new_v4().simple())
}

fn no_file() -> Failure {
    Failure::Discard(anyhow::anyhow!("the ledger is a server's, which is to copy it; leave `copy_to` out"))
}

/// Deletes lines that are older than those that are kept. What is left over costs room and nothing else.
async fn sweep(store: &dyn Store, newest: u32, now: Timestamp) {
    let swept = async {
        let kept = lines(store).await?.into_iter().map(|line| line.number).filter(|line| *line <= newest);
        let Some(oldest) = kept.take(LINES_KEPT).last() else { return Ok(()) };
        let old = |key: &str| line_of(key).is_some_and(|line| line < oldest);
        let keys = store.list(PREFIX).await?.into_iter().map(|object| object.key).filter(|key| old(key));
        let keys: Vec<String> = keys.collect();
        store.delete(&keys).await?;
        claims::sweep(store, oldest).await?;
        store.sweep_uploads(PREFIX, DEADLINE * 2, now).await?;
        reached("ledger copies swept");
        Ok::<(), Failure>(())
    };
    if let Err(failure) = swept.await {
        warn!("old copies of the ledger are still there: {}", failure.words());
    }
}
