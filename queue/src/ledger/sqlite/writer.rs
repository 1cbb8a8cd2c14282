//! The one connection that writes, and commits that several calls share.
//!
//! Callers take turns. One that shares writes in its turn and leaves the transaction open; whoever had queued meanwhile
//! writes into it too, and the first who comes round again commits for all of them. So a lone call waits for nobody, and
//! what comes at once costs one flush to the disk. What is not committed is answered to nobody.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection, SqliteTransaction};
use tokio::sync::{Mutex, MutexGuard, oneshot};

use super::super::LedgerError;
use super::unavailable;

/// What is written into a transaction with others. It may be asked again, when the transaction was rolled back.
#[async_trait]
pub(super) trait SharedWrite: Sync {
    type Answer: Send;

    async fn write(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, LedgerError>;

    /// Whether it is one statement that changes something, and so needs no transaction where there is none to share.
    fn commits_itself(&self) -> bool {
        false
    }
}

/// Who writes, one after the other.
pub(super) struct Writer(Mutex<Inner>);

struct Inner {
    connection: SqliteConnection,
    options: SqliteConnectOptions,
    state: State,
    /// Those who have written into the open transaction.
    waiting: Vec<oneshot::Sender<Fate>>,
}

/// Where the shared transaction stands. A state that lasts only while a caller has its turn, and is found by the next one,
/// tells that the caller was dropped half-way.
enum State {
    None,
    Open,
    Writing,
    Committing,
}

/// What became of a shared transaction.
#[derive(Clone)]
enum Fate {
    Committed,
    RolledBack,
    Failed(Arc<sqlx::Error>),
    Unknown,
}

impl Writer {
    pub(super) fn new(connection: SqliteConnection, options: SqliteConnectOptions) -> Self {
        Self(Mutex::new(Inner { connection, options, state: State::None, waiting: Vec::new() }))
    }

    /// Writes together with whoever else wants to, and answers when that is committed.
    pub(super) async fn share<W: SharedWrite>(&self, what: &W) -> Result<W::Answer, LedgerError> {
        loop {
            let mut inner = self.0.lock().await;
            inner.tidy_up().await;
            if what.commits_itself() && matches!(inner.state, State::None) {
                return what.write(&mut inner.connection).await;
            }
            let (answer, mut told) = inner.write(what).await?;
            drop(inner);
            let fate = tokio::select! {
                biased;
                fate = &mut told => fate,
                mut inner = self.0.lock() => {
                    inner.commit().await;
                    told.await
                }
            };
            match fate {
                Ok(Fate::Committed) => return Ok(answer),
                Ok(Fate::RolledBack) => {} // By what a neighbour did; once more.
                Ok(Fate::Failed(error)) => {
                    return Err(LedgerError::Unavailable(sqlx::Error::AnyDriverError(Box::new(error))));
                }
                Ok(Fate::Unknown) | Err(_) => return Err(LedgerError::Unknown("its commit was interrupted".into())),
            }
        }
    }

    /// The writer for one caller alone.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let mut inner = self.0.lock().await;
        inner.commit().await;
        Turn(inner)
    }
}

impl Inner {
    async fn write<W: SharedWrite>(&mut self, what: &W) -> Result<(W::Answer, oneshot::Receiver<Fate>), LedgerError> {
        let mut done = self.try_to_write(what).await;
        if done.is_err() && !self.waiting.is_empty() {
            // What its neighbours wrote may be why, and that is not committed. Alone it gets an answer of its own.
            self.roll_back(Fate::RolledBack).await;
            done = self.try_to_write(what).await;
        }
        match done {
            Ok(answer) => {
                let (tell, told) = oneshot::channel();
                self.waiting.push(tell);
                Ok((answer, told))
            }
            Err(error) => {
                self.roll_back(Fate::RolledBack).await;
                Err(error)
            }
        }
    }

    async fn try_to_write<W: SharedWrite>(&mut self, what: &W) -> Result<W::Answer, LedgerError> {
        if matches!(self.state, State::None) {
            self.state = State::Writing;
            self.begin().await.map_err(unavailable)?;
        }
        self.state = State::Writing;
        let answer = what.write(&mut self.connection).await;
        self.state = State::Open;
        answer
    }

    async fn begin(&mut self) -> Result<(), sqlx::Error> {
        if self.execute("begin immediate").await.is_err() {
            // Whatever state it is in, a new one is in none.
            self.connection = SqliteConnection::connect_with(&self.options).await?;
            self.execute("begin immediate").await?;
        }
        Ok(())
    }

    /// Commits the shared transaction, if there is one, and tells who waits.
    async fn commit(&mut self) {
        self.tidy_up().await;
        if matches!(self.state, State::None) {
            return;
        }
        self.state = State::Committing;
        match self.execute("commit").await {
            Ok(()) => self.tell(Fate::Committed),
            // A failed commit of SQLite has not happened.
            Err(error) => self.roll_back(Fate::Failed(Arc::new(error))).await,
        }
    }

    /// Ends what a caller left half-way.
    async fn tidy_up(&mut self) {
        match self.state {
            State::None | State::Open => {}
            State::Writing => self.roll_back(Fate::RolledBack).await,
            State::Committing => self.roll_back(Fate::Unknown).await,
        }
    }

    async fn roll_back(&mut self, fate: Fate) {
        // SQLite may have done so by itself: then there is none to roll back.
        let _already = self.execute("rollback").await;
        self.tell(fate);
    }

    fn tell(&mut self, fate: Fate) {
        self.state = State::None;
        for one in self.waiting.drain(..) {
            let _gone_away = one.send(fate.clone());
        }
    }

    /// By hand: sqlx's own transactions count, and lose count where SQLite rolls back by itself.
    async fn execute(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(statement).execute(&mut self.connection).await?;
        Ok(())
    }
}

/// The writer in the hand of one caller.
pub(super) struct Turn<'a>(MutexGuard<'a, Inner>);

impl Turn<'_> {
    /// For single statements, each of which commits itself.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0.connection
    }

    /// A transaction that is sure to write. Dropped without a commit, it is rolled back.
    pub(super) async fn begin(&mut self) -> Result<SqliteTransaction<'_>, LedgerError> {
        self.mend().await.map_err(unavailable)?;
        self.0.connection.begin_with("begin immediate").await.map_err(unavailable)
    }

    /// Copies the log into the file; whether all of it is there now.
    pub(super) async fn checkpoint(&mut self) -> Result<bool, LedgerError> {
        self.mend().await.map_err(unavailable)?;
        let (busy, in_log, copied): (i64, i64, i64) = sqlx::query_as("pragma wal_checkpoint(passive)")
            .fetch_one(&mut self.0.connection)
            .await
            .map_err(unavailable)?;
        // What another checkpoint keeps from being looked at is told as -1 twice.
        Ok(busy == 0 && in_log == copied)
    }

    /// Replaces the connection where it is still in a transaction: `SQLite` itself has rolled that back (the disk is full,
    /// or fails), so sqlx can't, and would try for ever.
    async fn mend(&mut self) -> Result<(), sqlx::Error> {
        let inner = &mut *self.0;
        if inner.connection.is_in_transaction() {
            // The rollback of one that was dropped may only be on its way.
            inner.connection.ping().await?;
        }
        if inner.connection.is_in_transaction() {
            inner.connection = SqliteConnection::connect_with(&inner.options).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use tempfile::TempDir;
    use tokio::sync::Semaphore;
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    /// Stores a line, says so, and goes on when it is let.
    struct Line {
        text: &'static str,
        stored: Arc<Semaphore>,
        may_go: Arc<Semaphore>,
    }

    #[async_trait]
    impl SharedWrite for Line {
        type Answer = ();

        async fn write(&self, tx: &mut SqliteConnection) -> Result<(), LedgerError> {
            sqlx::query("insert into line values (?)").bind(self.text).execute(&mut *tx).await.map_err(unavailable)?;
            if self.text == "orphan" {
                sqlx::query("insert into child values ('nobody')").execute(&mut *tx).await.map_err(unavailable)?;
            }
            let lines: i64 =
                sqlx::query_scalar("select count(*) from line").fetch_one(tx).await.map_err(unavailable)?;
            if self.text == "only" && lines > 1 {
                return Err(LedgerError::Stale);
            }
            self.stored.add_permits(1);
            self.may_go.acquire().await.unwrap().forget();
            if self.text == "bad" { Err(LedgerError::Stale) } else { Ok(()) }
        }
    }

    struct Book {
        writer: Arc<Writer>,
        reader: SqliteConnection,
        _dir: TempDir,
    }

    struct Call {
        stored: Arc<Semaphore>,
        may_go: Arc<Semaphore>,
        answer: JoinHandle<Result<(), LedgerError>>,
    }

    impl Call {
        async fn has_stored(&self) {
            self.stored.acquire().await.unwrap().forget();
        }
    }

    impl Book {
        async fn open() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = SqliteConnectOptions::from_str(&format!("sqlite:{}/book.db", dir.path().display())).unwrap();
            let options = options.create_if_missing(true).journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
            let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
            let tables = "create table line (text text not null); create table parent (id text primary key);
                          create table child (id text references parent deferrable initially deferred)";
            sqlx::raw_sql(tables).execute(&mut connection).await.unwrap();
            let reader = SqliteConnection::connect_with(&options).await.unwrap();
            Self { writer: Arc::new(Writer::new(connection, options)), reader, _dir: dir }
        }

        /// Calls, and comes back when the call holds the writer or has queued for it: the runtime has one thread.
        async fn call(&self, text: &'static str) -> Call {
            let (stored, may_go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let line = Line { text, stored: Arc::clone(&stored), may_go: Arc::clone(&may_go) };
            let writer = Arc::clone(&self.writer);
            let answer = tokio::spawn(async move { writer.share(&line).await });
            yield_now().await;
            Call { stored, may_go, answer }
        }

        async fn lines(&mut self) -> Vec<String> {
            sqlx::query_scalar("select text from line order by text").fetch_all(&mut self.reader).await.unwrap()
        }
    }

    #[tokio::test]
    async fn who_queued_meanwhile_is_committed_with_the_first_and_nobody_is_answered_before() {
        let mut book = Book::open().await;
        let (first, second) = (book.call("first").await, book.call("second").await);
        first.has_stored().await;
        first.may_go.add_permits(1);
        second.has_stored().await;
        assert!(!first.answer.is_finished(), "answered before the commit");
        assert!(book.lines().await.is_empty(), "committed before the second had written");
        second.may_go.add_permits(1);
        first.answer.await.unwrap().unwrap();
        assert_eq!(book.lines().await, ["first", "second"], "both by one commit");
        second.answer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_fails_undoes_nothing_of_its_neighbours() {
        let mut book = Book::open().await;
        let calls = [book.call("first").await, book.call("bad").await, book.call("last").await];
        calls.iter().for_each(|call| call.may_go.add_permits(9));
        let [first, bad, last] = calls.map(|call| call.answer);
        first.await.unwrap().unwrap();
        assert!(matches!(bad.await.unwrap(), Err(LedgerError::Stale)));
        last.await.unwrap().unwrap();
        assert_eq!(book.lines().await, ["first", "last"]);
    }

    #[tokio::test]
    async fn one_that_fails_beside_what_is_not_committed_is_tried_alone() {
        let mut book = Book::open().await;
        let calls = [book.call("first").await, book.call("only").await];
        calls.iter().for_each(|call| call.may_go.add_permits(9));
        for answer in calls.map(|call| call.answer) {
            answer.await.unwrap().unwrap();
        }
        assert_eq!(book.lines().await, ["first", "only"]);
    }

    #[tokio::test]
    async fn one_that_is_dropped_half_way_undoes_nothing_of_its_neighbours() {
        let mut book = Book::open().await;
        let (first, dropped) = (book.call("first").await, book.call("dropped").await);
        first.may_go.add_permits(9);
        dropped.has_stored().await;
        dropped.answer.abort();
        first.answer.await.unwrap().unwrap();
        assert_eq!(book.lines().await, ["first"]);
    }

    #[tokio::test]
    async fn a_commit_that_fails_is_told_to_all_and_wedges_nothing() {
        let mut book = Book::open().await;
        let calls = [book.call("first").await, book.call("orphan").await];
        calls.iter().for_each(|call| call.may_go.add_permits(9));
        for answer in calls.map(|call| call.answer) {
            assert!(matches!(answer.await.unwrap(), Err(LedgerError::Unavailable(_))));
        }
        let next = book.call("next").await;
        next.may_go.add_permits(9);
        next.answer.await.unwrap().unwrap();
        assert_eq!(book.lines().await, ["next"]);
    }
}
