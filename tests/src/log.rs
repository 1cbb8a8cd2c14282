//! What is logged in this thread, whoever logs it, at the finest level: to look for secrets in it.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing_subscriber::fmt::format::FmtSpan;

/// Keeps all log lines and spans of this thread until it is dropped.
pub struct Log {
    written: Written,
    _logging: DefaultGuard,
    _second: Dispatch,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// From now on.
    pub fn keep() -> Self {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_writer(move || writer.clone())
            .finish();
        // With a single subscriber, tracing asks the thread that comes first to a place in the code whether it is heard, and
        // for good; the threads of other tests have none. With two it asks both.
        let second = Dispatch::new(NoSubscriber::new());
        Self { written, _logging: tracing::subscriber::set_default(subscriber), _second: second }
    }

    /// The lines that hold a text.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = String::from_utf8_lossy(&written);
        written.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}
