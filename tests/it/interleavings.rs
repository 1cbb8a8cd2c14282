//! Random interleavings of everything that a ledger is asked, against a model that knows nothing of tables: whatever the
//! order, what was stored ends once, no stale attempt writes, and no key has more inside than it may.
//!
//! 24 cases on `SQLite` and 8 on `PostgreSQL`; `NIGHTPORTER_TEST_LONG=1` runs fifty times as many.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use queue::clock::later;
use queue::ledger::{Beat, LedgerError, Pausable, Replay};
use schemas::{AttemptId, JobId, JobState, Limit, NewJob, Outcome, StepState, Timestamp};
use tests::ledgers::{LEASE, TestLedger, ada, completed, discarded};

const KEYS: [&str; 3] = ["a", "b", "c"];
const KINDS: [&str; 2] = ["noop", "other"];

/// One thing that somebody asks of the ledger. Numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
enum Ask {
    Enqueue {
        kind: usize,
        keys: Vec<(usize, u32)>,
        in_minutes: u64,
        unique: Option<u8>,
    },
    Accept {
        delivery: u8,
    },
    Claim {
        limit: u32,
    },
    Beat {
        of: usize,
    },
    Step {
        of: usize,
        name: u8,
        finish: bool,
    },
    Finish {
        of: usize,
        how: How,
    },
    /// By an attempt that is over.
    FinishStale {
        of: usize,
    },
    Pass {
        seconds: u64,
    },
    Promote,
    Rescue,
    Cancel {
        job: usize,
    },
    Retry {
        job: usize,
    },
    Replay {
        job: usize,
    },
    Pause {
        what: usize,
    },
    Resume {
        what: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Complete,
    Retry,
    Snooze,
    Release,
    Discard,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let keys = prop::collection::vec((0..KEYS.len(), 1..3_u32), 0..3);
    let unique = prop::option::weighted(0.3, 0..4_u8);
    let how = prop_oneof![
        4 => Just(How::Complete),
        1 => Just(How::Retry),
        1 => Just(How::Snooze),
        1 => Just(How::Release),
        1 => Just(How::Discard),
    ];
    let ask = prop_oneof![
        6 => (0..KINDS.len(), keys, 0..3_u64, unique)
            .prop_map(|(kind, keys, in_minutes, unique)| Ask::Enqueue { kind, keys, in_minutes, unique }),
        2 => (0..6_u8).prop_map(|delivery| Ask::Accept { delivery }),
        6 => (1..4_u32).prop_map(|limit| Ask::Claim { limit }),
        2 => any::<usize>().prop_map(|of| Ask::Beat { of }),
        3 => (any::<usize>(), 0..2_u8, any::<bool>()).prop_map(|(of, name, finish)| Ask::Step { of, name, finish }),
        8 => (any::<usize>(), how).prop_map(|(of, how)| Ask::Finish { of, how }),
        3 => any::<usize>().prop_map(|of| Ask::FinishStale { of }),
        4 => (1..90_u64).prop_map(|seconds| Ask::Pass { seconds }),
        3 => Just(Ask::Promote),
        3 => Just(Ask::Rescue),
        2 => any::<usize>().prop_map(|job| Ask::Cancel { job }),
        2 => any::<usize>().prop_map(|job| Ask::Retry { job }),
        1 => any::<usize>().prop_map(|job| Ask::Replay { job }),
        1 => (0..KEYS.len() + KINDS.len()).prop_map(|what| Ask::Pause { what }),
        2 => (0..KEYS.len() + KINDS.len()).prop_map(|what| Ask::Resume { what }),
    ];
    prop::collection::vec(ask, 20..120)
}

/// What is known of one job.
struct Known {
    kind: usize,
    limits: BTreeMap<usize, u32>,
    unique: Option<u8>,
    state: Kept,
    attempt: i32,
    failures: i32,
    crashes: i32,
    progressed: bool,
    cancel: bool,
    finished_steps: HashSet<u8>,
    begun_steps: HashSet<u8>,
}

/// A state as the model keeps it. Whether a job at the door is let in, is the ledger's to say; the rules that it must
/// keep are checked after each ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    AtTheDoor,
    PutOff(JobState, Timestamp),
    Running { lease_until: Timestamp },
    Ended(JobState),
}

struct Model<'t> {
    t: &'t TestLedger,
    jobs: BTreeMap<JobId, Known>,
    over: Vec<AttemptId>,
    deliveries: HashMap<u8, JobId>,
    holders: HashMap<u8, JobId>,
    paused: HashSet<usize>,
    asked: u64,
}

fn pausable(what: usize) -> Pausable {
    match KEYS.get(what) {
        Some(key) => Pausable::Key((*key).into()),
        None => Pausable::Kind(KINDS[what - KEYS.len()].into()),
    }
}

impl<'t> Model<'t> {
    fn new(t: &'t TestLedger) -> Self {
        Self {
            t,
            jobs: BTreeMap::new(),
            over: Vec::new(),
            deliveries: HashMap::new(),
            holders: HashMap::new(),
            paused: HashSet::new(),
            asked: 0,
        }
    }

    async fn ask(&mut self, ask: &Ask) {
        self.asked += 1;
        match ask {
            Ask::Enqueue { kind, keys, in_minutes, unique } => self.enqueue(*kind, keys, *in_minutes, *unique).await,
            Ask::Accept { delivery } => self.accept(*delivery).await,
            Ask::Claim { limit } => self.claim(*limit).await,
            Ask::Beat { of } => self.beat(*of).await,
            Ask::Step { of, name, finish } => self.step(*of, *name, *finish).await,
            Ask::Finish { of, how } => self.finish(*of, *how).await,
            Ask::FinishStale { of } => self.finish_stale(*of).await,
            Ask::Pass { seconds } => self.t.clock.advance(Duration::from_secs(*seconds)),
            Ask::Promote => self.promote().await,
            Ask::Rescue => self.rescue().await,
            Ask::Cancel { job } => self.cancel(*job).await,
            Ask::Retry { job } => self.retry(*job).await,
            Ask::Replay { job } => self.replay(*job).await,
            Ask::Pause { what } => self.pause(*what).await,
            Ask::Resume { what } => self.resume(*what).await,
        }
        self.check().await;
    }

    fn note(&mut self, job: &NewJob, unique: Option<u8>) {
        let state = match job.run_at.filter(|at| *at > self.t.now()) {
            Some(at) => Kept::PutOff(JobState::Scheduled, at),
            None => Kept::AtTheDoor,
        };
        let key = |limit: &Limit| KEYS.iter().position(|key| *key == limit.key).unwrap();
        let known = Known {
            kind: KINDS.iter().position(|kind| *kind == job.kind).unwrap(),
            limits: job.limits.iter().map(|limit| (key(limit), limit.at_once.unwrap().get())).collect(),
            unique,
            state,
            attempt: 0,
            failures: 0,
            crashes: 0,
            progressed: false,
            cancel: false,
            finished_steps: HashSet::new(),
            begun_steps: HashSet::new(),
        };
        self.jobs.insert(job.id, known);
    }

    fn job(&self, kind: usize, keys: &[(usize, u32)]) -> NewJob {
        let keys: BTreeMap<usize, u32> = keys.iter().copied().collect();
        let limits =
            keys.into_iter().map(|(key, most)| Limit { at_once: NonZeroU32::new(most), ..Limit::none(KEYS[key]) });
        NewJob { kind: KINDS[kind].into(), limits: limits.collect(), ..self.t.job() }
    }

    async fn enqueue(&mut self, kind: usize, keys: &[(usize, u32)], in_minutes: u64, unique: Option<u8>) {
        let mut job = self.job(kind, keys);
        job.run_at = (in_minutes > 0).then(|| later(self.t.now(), Duration::from_mins(in_minutes)));
        job.key = unique.map(|name| schemas::Key {
            scope: "it".into(),
            key: name.to_string(),
            hold: Duration::from_hours(10_000),
        });
        let answered = self.t.enqueue(std::slice::from_ref(&job)).await[0];
        if let Some(holder) = unique.and_then(|name| self.holders.get(&name)) {
            return assert_eq!(answered, *holder, "a key has one holder");
        }
        assert_eq!(answered, job.id);
        self.holders.extend(unique.map(|name| (name, job.id)));
        self.note(&job, unique);
    }

    async fn accept(&mut self, delivery: u8) {
        let booked = self.t.delivery(&delivery.to_string(), &[delivery]);
        let receipt = self.t.accept(&booked).await;
        assert_eq!(receipt.duplicate, self.deliveries.contains_key(&delivery), "a delivery is booked once");
        if !receipt.duplicate {
            self.deliveries.insert(delivery, booked.jobs[0].id);
            self.note(&booked.jobs[0], None);
        }
    }

    async fn claim(&mut self, limit: u32) {
        let mut available = 0;
        for (id, known) in &self.jobs {
            let paused = self.paused.contains(&(KEYS.len() + known.kind));
            if known.state == Kept::AtTheDoor && !paused && self.t.state(*id).await == JobState::Available {
                available += 1;
            }
        }
        let claimed = self.t.claim_kinds(&KINDS, limit).await;
        assert_eq!(claimed.len(), available.min(limit as usize), "a claim takes what is available, up to its limit");
        let lease_until = later(self.t.now(), LEASE);
        for claimed in claimed {
            let known = self.jobs.get_mut(&claimed.id.job).expect("a job that was stored");
            assert_eq!(known.state, Kept::AtTheDoor, "only who stands at the door is claimed");
            known.attempt += 1;
            assert_eq!(claimed.id.number, known.attempt, "an attempt's number rises by one");
            assert_eq!((claimed.failures, claimed.crashes), (known.failures, known.crashes));
            known.state = Kept::Running { lease_until };
            known.progressed = false;
        }
    }

    fn running(&self, of: usize) -> Option<AttemptId> {
        let running = |(id, known): (&JobId, &Known)| {
            matches!(known.state, Kept::Running { .. }).then_some(AttemptId { job: *id, number: known.attempt })
        };
        let running: Vec<AttemptId> = self.jobs.iter().filter_map(running).collect();
        running.get(of.checked_rem(running.len())?).copied()
    }

    async fn beat(&mut self, of: usize) {
        let Some(attempt) = self.running(of) else { return };
        let lease_until = later(self.t.now(), LEASE);
        let asked: Vec<AttemptId> = self.over.iter().copied().chain([attempt]).collect();
        let beats = self.t.ledger.heartbeat(&asked, lease_until, self.t.now()).await.unwrap();
        let (last, stale) = beats.split_last().unwrap();
        assert!(stale.iter().all(|beat| *beat == Beat::Lost), "an attempt that is over has no lease");
        let known = self.jobs.get_mut(&attempt.job).unwrap();
        assert_eq!(matches!(last, Beat::Cancel(_)), known.cancel);
        assert_ne!(*last, Beat::Lost);
        known.state = Kept::Running { lease_until };
    }

    async fn step(&mut self, of: usize, name: u8, finish: bool) {
        let text = name.to_string();
        if let Some(stale) = self.over.get(of.checked_rem(self.over.len()).unwrap_or(0)) {
            let answer = self.t.ledger.start_step(*stale, &text, self.t.now()).await;
            assert!(matches!(answer, Err(LedgerError::Stale)), "a stale attempt begins no step");
            let answer = self.t.ledger.finish_step(*stale, &text, None, self.t.now()).await;
            assert!(matches!(answer, Err(LedgerError::Stale)), "nor finishes one");
        }
        let Some(attempt) = self.running(of) else { return };
        let state = self.t.ledger.start_step(attempt, &text, self.t.now()).await.unwrap();
        let known = self.jobs.get_mut(&attempt.job).unwrap();
        let expected = known.finished_steps.contains(&name);
        assert_eq!(matches!(state, StepState::Finished(_)), expected, "a finished step stays finished");
        assert_eq!(matches!(state, StepState::Unknown), !expected && known.begun_steps.contains(&name));
        known.begun_steps.insert(name);
        if finish && !expected {
            self.t.ledger.finish_step(attempt, &text, None, self.t.now()).await.unwrap();
            known.finished_steps.insert(name);
            known.progressed = true;
            known.crashes = 0;
        }
    }

    async fn finish(&mut self, of: usize, how: How) {
        let Some(attempt) = self.running(of) else { return };
        let at = later(self.t.now(), Duration::from_mins(1));
        let outcome = match how {
            How::Complete => completed(None),
            How::Retry => Outcome::Retry { at, error: "no".into() },
            How::Snooze => Outcome::Snoozed { at, reason: "not yet".into() },
            How::Release => Outcome::Released,
            How::Discard => discarded("no"),
        };
        assert!(self.t.finish(attempt, outcome).await, "the current attempt is heard");
        self.over.push(attempt);
        let known = self.jobs.get_mut(&attempt.job).unwrap();
        known.state = match how {
            How::Complete => Kept::Ended(JobState::Completed),
            How::Discard => Kept::Ended(JobState::Discarded),
            _ if known.cancel => Kept::Ended(JobState::Cancelled),
            How::Retry => Kept::PutOff(JobState::Retryable, at),
            How::Snooze => Kept::PutOff(JobState::Scheduled, at),
            How::Release => Kept::AtTheDoor,
        };
        known.failures += i32::from(matches!(how, How::Retry) && !known.cancel);
        self.let_go(attempt.job);
    }

    /// What did not succeed lets go of its key.
    fn let_go(&mut self, job: JobId) {
        let known = &self.jobs[&job];
        if matches!(known.state, Kept::Ended(JobState::Discarded | JobState::Cancelled))
            && let Some(name) = known.unique
        {
            self.holders.remove(&name);
        }
    }

    async fn finish_stale(&mut self, of: usize) {
        let Some(stale) = of.checked_rem(self.over.len()).map(|at| self.over[at]) else { return };
        let (recorded, bells) = self.t.finish_ringing(stale, completed(None)).await;
        assert!(!recorded && bells.is_empty(), "a stale attempt ends nothing");
    }

    async fn promote(&mut self) {
        self.t.promote().await;
        let now = self.t.now();
        for known in self.jobs.values_mut() {
            if matches!(known.state, Kept::PutOff(_, at) if at <= now) {
                known.state = Kept::AtTheDoor;
            }
        }
    }

    async fn rescue(&mut self) {
        let now = self.t.now();
        let rescued: BTreeMap<JobId, JobState> = self.t.rescue().await.into_iter().collect();
        let mut expected = BTreeMap::new();
        let mut ended = Vec::new();
        for (id, known) in &mut self.jobs {
            if !matches!(known.state, Kept::Running { lease_until } if lease_until < now) {
                continue;
            }
            self.over.push(AttemptId { job: *id, number: known.attempt });
            let crashes = if known.progressed { 0 } else { known.crashes + 1 };
            let state = match crashes {
                _ if known.cancel => JobState::Cancelled,
                3.. => JobState::Discarded,
                _ => JobState::Available,
            };
            known.crashes = if known.cancel { known.crashes } else { crashes };
            known.state = if state == JobState::Available { Kept::AtTheDoor } else { Kept::Ended(state) };
            expected.insert(*id, state);
            ended.push(*id);
        }
        assert_eq!(rescued, expected, "exactly those whose lease has run out are rescued");
        ended.into_iter().for_each(|job| self.let_go(job));
        // People are told of what was given up: those jobs are none of the model's.
        for notice in self.t.claim_kinds(&["notify"], 100).await {
            assert!(self.t.finish(notice.id, completed(None)).await);
        }
    }

    fn any(&self, index: usize) -> Option<JobId> {
        self.jobs.keys().nth(index.checked_rem(self.jobs.len())?).copied()
    }

    async fn cancel(&mut self, index: usize) {
        let Some(job) = self.any(index) else { return };
        let answer = self.t.ledger.cancel(job, &ada(), self.t.now()).await;
        let known = self.jobs.get_mut(&job).unwrap();
        match known.state {
            Kept::Ended(_) => assert!(matches!(answer, Err(LedgerError::Conflict(_)))),
            Kept::Running { .. } => {
                assert_eq!(answer.unwrap().0, JobState::Running);
                known.cancel = true;
            }
            Kept::AtTheDoor | Kept::PutOff(..) => {
                assert_eq!(answer.unwrap().0, JobState::Cancelled);
                known.state = Kept::Ended(JobState::Cancelled);
                self.let_go(job);
            }
        }
    }

    async fn retry(&mut self, index: usize) {
        let Some(job) = self.any(index) else { return };
        let answer = self.t.ledger.retry(job, &ada(), self.t.now()).await;
        let known = self.jobs.get_mut(&job).unwrap();
        let failed = matches!(known.state, Kept::Ended(JobState::Discarded | JobState::Cancelled));
        let taken = known.unique.is_some_and(|name| self.holders.get(&name).is_some_and(|holder| *holder != job));
        if !failed || taken {
            assert!(matches!(answer, Err(LedgerError::Conflict(_))), "{answer:?}");
            return;
        }
        answer.unwrap();
        self.holders.extend(known.unique.map(|name| (name, job)));
        known.state = Kept::AtTheDoor;
        (known.failures, known.crashes, known.cancel) = (0, 0, false);
    }

    async fn replay(&mut self, index: usize) {
        let Some(of) = self.any(index) else { return };
        let Kept::Ended(state) = self.jobs[&of].state else { return };
        let (kind, attempt) = (self.jobs[&of].kind, self.jobs[&of].attempt);
        let limits: Vec<(usize, u32)> = self.jobs[&of].limits.iter().map(|(key, most)| (*key, *most)).collect();
        let again = NewJob { replay_of: Some(of), ..self.job(kind, &limits) };
        let replay = Replay::Job { of, state, attempt, again: Box::new(again.clone()) };
        let wrong = Replay::Job { of, state, attempt: attempt + 1, again: Box::new(again.clone()) };
        let refused = self.t.ledger.replay(&[replay.clone(), wrong], &ada(), self.t.now()).await;
        assert!(matches!(refused, Err(LedgerError::Conflict(_))), "one that has changed stops them all");
        self.t.ledger.replay(&[replay], &ada(), self.t.now()).await.unwrap();
        self.note(&again, None);
    }

    async fn pause(&mut self, what: usize) {
        let answer = self.t.ledger.pause(&pausable(what), &ada(), self.t.now()).await;
        assert_eq!(answer.is_ok(), self.paused.insert(what));
        self.t.ledger.review(100, self.t.now()).await.unwrap();
    }

    async fn resume(&mut self, what: usize) {
        let answer = self.t.ledger.resume(&pausable(what), &ada(), self.t.now()).await;
        assert_eq!(answer.is_ok(), self.paused.remove(&what));
        self.t.ledger.review(100, self.t.now()).await.unwrap();
    }

    /// What holds after every ask.
    async fn check(&self) {
        let mut inside: HashMap<usize, u32> = HashMap::new();
        let mut waiting = Vec::new();
        for (id, known) in &self.jobs {
            let view = self.t.view(*id).await;
            let expected = match known.state {
                Kept::PutOff(state, _) | Kept::Ended(state) => state,
                Kept::Running { .. } => JobState::Running,
                Kept::AtTheDoor if view.state == JobState::Available => JobState::Available,
                Kept::AtTheDoor => JobState::Pending,
            };
            assert_eq!(view.state, expected, "of a {} with {:?}", view.kind, known.limits);
            assert_eq!((view.failures, view.crashes), (known.failures, known.crashes));
            if matches!(view.state, JobState::Available | JobState::Running) {
                known.limits.keys().for_each(|key| *inside.entry(*key).or_default() += 1);
            } else if view.state == JobState::Pending {
                waiting.push(known);
            }
        }
        for known in self.jobs.values() {
            let is_inside = matches!(known.state, Kept::Running { .. });
            for (key, most) in known.limits.iter().filter(|_| is_inside) {
                // Jobs may name the same key with different limits: the most lenient one that is inside bounds them all.
                let lenient = self.jobs.values().filter_map(|known| known.limits.get(key)).max().unwrap_or(most);
                assert!(inside[key] <= *lenient, "{} are inside at `{}`", inside[key], KEYS[*key]);
            }
        }
        for known in waiting {
            let paused = self.paused.contains(&(KEYS.len() + known.kind))
                || known.limits.keys().any(|key| self.paused.contains(key));
            let full = known.limits.iter().any(|(key, most)| inside.get(key).copied().unwrap_or(0) >= *most);
            assert!(paused || full, "a job waits at {:?} though there is room", known.limits);
        }
    }
}

/// Runs cases, each on a ledger of its own, and prints how many asks were made.
fn run(cases: u32, open: impl AsyncFn() -> TestLedger) {
    let factor = if std::env::var_os("NIGHTPORTER_TEST_LONG").is_some() { 50 } else { 1 };
    let config =
        Config { cases: cases * factor, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = Cell::new(0);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&asks(), |asks| {
        runtime.block_on(async {
            let t = open().await;
            let watch = t.watch().await;
            let mut model = Model::new(&t);
            for ask in &asks {
                model.ask(ask).await;
            }
            watch.verify().await;
            asked.set(asked.get() + model.asked);
        });
        Ok(())
    });
    println!("{} cases, {} asks", cases * factor, asked.get());
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn any_interleaving_on_sqlite_keeps_the_rules() {
    run(24, async || TestLedger::sqlite().await);
}

#[test]
fn any_interleaving_on_postgres_keeps_the_rules() {
    run(8, async || TestLedger::postgres().await);
}
