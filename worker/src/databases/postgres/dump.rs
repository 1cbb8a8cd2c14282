//! A dump by `pg_dump`, and beside it, in the same snapshot, what the tables hold.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::contents::Snapshot;
use super::{ENGINE, Postgres};
use crate::databases::program::{Program, suited};
use crate::databases::{Contents, Digests, Dump, DumpFacts};
use crate::handler::{Failure, OrFail};

/// A dump that says nothing for so long is stuck: `pg_dump` waits without end for a lock, or for a dead server.
const SILENCE: Duration = Duration::from_hours(1);
/// All tables are locked already when `pg_dump` locks them: it waits only for somebody who waits for us, and who makes
/// others wait.
const LOCK_WAIT: &str = "--lock-wait-timeout=30000";
/// Bytes of a dump are handed on in pieces of this size.
const PIECE: usize = 256 * 1024;

struct PgDump {
    program: Program,
    output: ChildStdout,
    facts: DumpFacts,
    estimate: u64,
    /// What the tables hold, as it is found out beside the dump; the snapshot with it, until the dump has ended.
    contents: Option<AbortOnDropHandle<Result<(Contents, Snapshot), Failure>>>,
}

pub(super) async fn begin(server: &Postgres) -> Result<Box<dyn Dump>, Failure> {
    let mut connection = server.connect().await?;
    let (major, server_version, estimate) = server.server(&mut connection).await?;
    // It reads the backup through at the end: better missed now than then.
    suited("pg_restore", major).await?;
    let snapshot = Snapshot::open(connection).await?;
    let joined = snapshot.as_ref().map(|snapshot| format!("--snapshot={}", snapshot.id)).ok();
    // Compression is left to us (-Z0): pg_dump's own is a third as fast.
    let mut arguments = vec!["--format=custom", "--compress=0", "--no-password"];
    arguments.extend(joined.iter().flat_map(|joined| [joined.as_str(), LOCK_WAIT]));
    let (mut program, made_with) = server.start("pg_dump", &arguments, major, None).await?;
    let output = program.take_output()?;
    let facts = DumpFacts {
        engine: ENGINE.to_owned(),
        server_version,
        format: "pg_dump custom".to_owned(),
        made_with,
        warnings: snapshot.as_ref().err().copied().map(uncounted).into_iter().collect(),
        contents: None,
    };
    let digests = Digests::UpTo(server.digests_up_to);
    let counting = snapshot.ok().map(|snapshot| tokio::spawn(snapshot.contents(digests).in_current_span()));
    Ok(Box::new(PgDump { program, output, facts, estimate, contents: counting.map(AbortOnDropHandle::new) }))
}

/// What a manifest says where there are more tables than are counted.
fn uncounted(tables: usize) -> String {
    format!("the rows of its {tables} tables were not counted, so that no restore can be compared with them")
}

#[async_trait]
impl Dump for PgDump {
    fn estimate(&self) -> u64 {
        self.estimate
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = tokio::time::timeout(SILENCE, self.output.read_buf(&mut piece)).await;
        let read = read.or_retry("pg_dump said nothing for an hour")?.or_retry("reading from pg_dump")?;
        Ok((read > 0).then(|| piece.freeze()))
    }

    async fn finish(self: Box<Self>) -> Result<DumpFacts, Failure> {
        let mut facts = self.facts;
        facts.warnings.extend(self.program.end_well().await?);
        if let Some(counting) = self.contents {
            let (contents, _snapshot) = counting.await.or_retry("counting the rows panicked")??;
            facts.contents = Some(contents);
        }
        Ok(facts)
    }
}
