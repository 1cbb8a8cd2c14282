//! One suite, a line for each engine.

use tests::ledgers::TestLedger;

/// Runs each check on each engine.
macro_rules! on_every_engine {
    ($($check:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $check() {
                crate::engines::watched(tests::ledgers::TestLedger::sqlite().await, super::$check).await;
            })*
        }
        mod postgres {
            $(#[tokio::test] async fn $check() {
                crate::engines::watched(tests::ledgers::TestLedger::postgres().await, super::$check).await;
            })*
        }
    };
}

/// Runs a check; whatever it does, jobs go only ways that there are.
pub(crate) async fn watched(t: TestLedger, check: impl AsyncFnOnce(TestLedger)) {
    let watch = t.watch().await;
    check(t).await;
    watch.verify().await;
}
