//! Batches form by themselves: what arrives while a transaction commits is committed together in the next one. A lone
//! item never waits for company.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, Span};

use crate::ledger::LedgerError;

/// No transaction takes more items than this.
const LARGEST_BATCH: usize = 256;

/// Items that wait for their turn; beyond it callers wait to hand theirs over.
const WAITING: usize = 4096;

/// A writer that commits what comes to it in batches.
pub(crate) struct Batcher<Item, Answer> {
    items: mpsc::Sender<Waiting<Item, Answer>>,
}

struct Waiting<Item, Answer> {
    item: Item,
    answer: oneshot::Sender<Result<Answer, Arc<LedgerError>>>,
}

impl<Item: Send + Sync + 'static, Answer: Send + 'static> Batcher<Item, Answer> {
    /// Starts the writer. `commit` writes a batch in one transaction and answers for each item, in order.
    pub(crate) fn start<F, Fut>(commit: F) -> Self
    where
        F: Fn(Arc<Vec<Item>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Answer>, LedgerError>> + Send,
    {
        let (items, mut waiting) = mpsc::channel(WAITING);
        let writer = async move {
            let mut batch = Vec::with_capacity(LARGEST_BATCH);
            while waiting.recv_many(&mut batch, LARGEST_BATCH).await > 0 {
                write(&commit, std::mem::take(&mut batch)).await;
                // Those who were answered just now may bring their next one, and it goes with the others that wait.
                tokio::task::yield_now().await;
            }
        };
        // In no span: a batch belongs to many requests, not to the one that happened to start the writer.
        tokio::spawn(writer.instrument(Span::none()));
        Self { items }
    }

    /// Has one item committed. A caller that goes away cancels nothing.
    pub(crate) async fn submit(&self, item: Item) -> Result<Answer, Arc<LedgerError>> {
        let (answer, answered) = oneshot::channel();
        let gone = || Arc::new(LedgerError::Unknown("the writer has stopped".into()));
        self.items.send(Waiting { item, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn write<Item, Answer, F, Fut>(commit: &F, batch: Vec<Waiting<Item, Answer>>)
where
    F: Fn(Arc<Vec<Item>>) -> Fut,
    Fut: Future<Output = Result<Vec<Answer>, LedgerError>>,
{
    let (items, callers): (Vec<Item>, Vec<_>) = batch.into_iter().map(|one| (one.item, one.answer)).unzip();
    let items = Arc::new(items);
    // A panic must not end the writer: nothing would be written any more, by a process that looks alive.
    let committed = AssertUnwindSafe(async { commit(Arc::clone(&items)).await }).catch_unwind().await;
    match committed.unwrap_or_else(|_| Err(LedgerError::Unknown("the writer panicked".into()))) {
        Ok(answers) => {
            for (caller, answer) in callers.into_iter().zip(answers) {
                let _gone_away = caller.send(Ok(answer));
            }
        }
        // One of them is bad, and it fails alone.
        Err(LedgerError::Refused(_)) if items.len() > 1 => {
            let items = Arc::into_inner(items).unwrap_or_default();
            for (item, caller) in items.into_iter().zip(callers) {
                Box::pin(write(commit, vec![Waiting { item, answer: caller }])).await;
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for caller in callers {
                let _gone_away = caller.send(Err(Arc::clone(&error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// A writer that notes the size of each batch and commits when it is let; an odd item above 100 is bad.
    fn writer(gate: Arc<Semaphore>, sizes: Arc<Mutex<Vec<usize>>>) -> Batcher<u32, u32> {
        Batcher::start(move |items: Arc<Vec<u32>>| {
            let (gate, sizes) = (Arc::clone(&gate), Arc::clone(&sizes));
            async move {
                gate.acquire().await.unwrap().forget();
                sizes.lock().unwrap().push(items.len());
                if items.contains(&101) {
                    return Err(LedgerError::Refused(sqlx::Error::WorkerCrashed));
                }
                Ok(items.iter().map(|item| item * 2).collect())
            }
        })
    }

    #[tokio::test]
    async fn what_arrives_during_a_commit_is_committed_together_and_each_gets_its_own_answer() {
        let (gate, sizes) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let batcher = Arc::new(writer(Arc::clone(&gate), Arc::clone(&sizes)));
        let first = tokio::spawn({
            let batcher = Arc::clone(&batcher);
            async move { batcher.submit(0).await }
        });
        while batcher.items.capacity() < WAITING || sizes.lock().unwrap().len() > 1 {
            tokio::task::yield_now().await; // until the writer has taken the first one
        }
        let others = join_all((1..10).map(|item| batcher.submit(item)));
        gate.add_permits(10);
        let answers: Vec<u32> = others.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (1..10).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(first.await.unwrap().unwrap(), 0);
        assert!(sizes.lock().unwrap().len() <= 3, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_bad_item_fails_alone() {
        let gate = Arc::new(Semaphore::new(100));
        let batcher = writer(gate, Arc::default());
        let answers = join_all([1, 101, 3].map(|item| batcher.submit(item))).await;
        assert_eq!(answers[0].as_ref().unwrap(), &2);
        assert!(matches!(**answers[1].as_ref().unwrap_err(), LedgerError::Refused(_)));
        assert_eq!(answers[2].as_ref().unwrap(), &6);
    }

    #[tokio::test]
    async fn a_panic_in_a_commit_does_not_end_the_writer() {
        let batcher = Batcher::start(|items: Arc<Vec<u32>>| async move {
            assert_ne!(items[0], 13, "as asked");
            Ok(items.to_vec())
        });
        assert!(matches!(*batcher.submit(13).await.unwrap_err(), LedgerError::Unknown(_)));
        assert_eq!(batcher.submit(1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_cancels_nothing() {
        let committed = Arc::new(AtomicBool::new(false));
        let (gate, done) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let batcher = Batcher::start({
            let (committed, gate, done) = (Arc::clone(&committed), Arc::clone(&gate), Arc::clone(&done));
            move |items: Arc<Vec<u32>>| {
                let (committed, gate, done) = (Arc::clone(&committed), Arc::clone(&gate), Arc::clone(&done));
                async move {
                    gate.acquire().await.unwrap().forget();
                    committed.store(true, Ordering::SeqCst);
                    done.add_permits(1);
                    Ok(items.to_vec())
                }
            }
        });
        let caller = tokio::spawn(async move { batcher.submit(1).await });
        tokio::task::yield_now().await;
        caller.abort();
        gate.add_permits(1);
        done.acquire().await.unwrap().forget();
        assert!(committed.load(Ordering::SeqCst));
    }
}
