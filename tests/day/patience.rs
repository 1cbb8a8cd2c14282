//! Waiting for what must come, for so long and no longer.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// Looks until there is something. An error on the way is a look in vain; the last one is told when the time is up.
pub(crate) async fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let failed = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > deadline {
            let why = failed.map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("waited in vain for {} s until {what}{why}", within.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}
