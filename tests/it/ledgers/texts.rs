//! What is stored comes back, however odd, and lists tell what is there.

use queue::ledger::{Enqueued, JobFilter};
use schemas::{JobState, StepState};
use serde_json::json;
use tests::ledgers::{TestLedger, discarded, new_job};

use super::keyed;

on_every_engine![odd_text_survives, a_nul_in_a_text_wedges_nothing, queues_and_lists_tell_what_is_there,];

async fn odd_text_survives(t: TestLedger) {
    let text = "quotes ' \" \\ $1 ? {{ }} — ünïcödé \u{1F980} \u{7f} \r\n\t";
    let args = json!({ "text": text, "big": u64::MAX, "deep": [[[[{"a": null}]]]] });
    let id = t.enqueue(&[new_job("noop", &args.to_string(), t.now())]).await[0];
    let claimed = t.claim_one().await;
    assert_eq!(claimed.args.get(), args.to_string());
    t.finish(claimed.id, discarded(text)).await;
    let view = t.view(id).await;
    assert_eq!((view.args, view.reason.as_deref()), (args, Some(text)));
}

async fn a_nul_in_a_text_wedges_nothing(t: TestLedger) {
    let mut delivery = t.delivery("d-\0", b"body");
    delivery.event.subject = Some("refs/heads/\0".into());
    delivery.jobs = vec![keyed(&t, "a\0b")];
    let (receipts, _) = t.ledger.accept(&[delivery.clone(), t.delivery("d-2", b"2")], t.now()).await.unwrap();
    assert!(receipts.iter().all(|receipt| !receipt.duplicate && receipt.jobs.len() == 1));
    assert!(t.accept(&delivery).await.duplicate);
    let (again, _) = t.ledger.enqueue(&[keyed(&t, "a\0b")], t.now()).await.unwrap();
    assert_eq!(again, [Enqueued::Existing(delivery.jobs[0].id)]);
    let attempt = t.claim_one().await.id;
    t.ledger.start_step(attempt, "a\0b", t.now()).await.unwrap();
    t.ledger.finish_step(attempt, "a\0b", None, t.now()).await.unwrap();
    assert!(matches!(t.ledger.start_step(attempt, "a\0b", t.now()).await.unwrap(), StepState::Finished(None)));
    assert!(t.finish(attempt, discarded("before\0after")).await);
    assert!(t.view(attempt.job).await.reason.unwrap().starts_with("before"));
}

async fn queues_and_lists_tell_what_is_there(t: TestLedger) {
    let ids = t.enqueue(&[t.job(), t.job(), t.job()]).await;
    t.complete_next(None).await;
    t.claim_one().await;
    let queues = t.ledger.queues().await.unwrap();
    assert_eq!(queues.len(), 1);
    let counts: Vec<(&str, u64)> = queues[0].jobs.iter().map(|(state, count)| (state.as_str(), *count)).collect();
    assert_eq!(counts, [("available", 1), ("running", 1)]);
    let list = |state| JobFilter { state, kind: Some("noop".into()), limit: 10, ..JobFilter::default() };
    let all = t.ledger.jobs(&list(None)).await.unwrap();
    assert_eq!(all.iter().map(|job| job.id).collect::<Vec<_>>(), ids.iter().rev().copied().collect::<Vec<_>>());
    let completed = t.ledger.jobs(&list(Some(JobState::Completed))).await.unwrap();
    assert_eq!(completed.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[0]]);
}
