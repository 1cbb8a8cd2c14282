//! Deliveries: each is booked once, with its work.

use std::time::Duration;

use queue::ledger::{LedgerError, Repeats};
use schemas::Standing;
use tests::ledgers::{TestLedger, ada};

on_every_engine![
    a_delivery_is_booked_once_with_its_jobs,
    deliveries_of_one_batch_are_told_apart,
    a_known_body_is_held_and_can_be_released,
    what_cannot_be_read_is_kept_without_jobs,
    bodies_come_back_byte_for_byte,
];

async fn a_delivery_is_booked_once_with_its_jobs(t: TestLedger) {
    let first = t.delivery("d-1", b"body");
    let receipt = t.accept(&first).await;
    assert_eq!((receipt.event, receipt.duplicate), (first.event.id, false));
    assert_eq!(receipt.jobs, [first.jobs[0].id]);
    let repeat = t.accept(&t.delivery("d-1", b"body")).await;
    assert_eq!((repeat.event, repeat.duplicate, repeat.jobs.len()), (first.event.id, true, 0));
    assert_eq!(t.claim(10).await.len(), 1);
    let view = t.ledger.event(first.event.id).await.unwrap().unwrap();
    assert_eq!((view.event, view.jobs, view.standing), (first.event, receipt.jobs, Standing::Accepted));
}

async fn deliveries_of_one_batch_are_told_apart(t: TestLedger) {
    let batch = [t.delivery("d-1", b"1"), t.delivery("d-1", b"1"), t.delivery("d-2", b"2")];
    let (receipts, _) = t.ledger.accept(&batch, t.now()).await.unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.duplicate).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(receipts[1].event, batch[0].event.id);
    assert_eq!(t.claim(10).await.len(), 2);
}

async fn a_known_body_is_held_and_can_be_released(t: TestLedger) {
    let with = |id: &str, repeats| queue::ledger::NewDelivery { repeats, ..t.delivery(id, b"same body") };
    assert_eq!(t.accept(&with("d-1", Repeats::AreHeld)).await.standing, Standing::Accepted);
    let suspect = with("d-2", Repeats::AreHeld);
    let receipt = t.accept(&suspect).await;
    assert_eq!((receipt.standing, receipt.jobs.len()), (Standing::Held, 0));
    let honest = Repeats::AreHeldAfter(Duration::from_mins(10));
    assert_eq!(t.accept(&with("d-3", honest)).await.standing, Standing::Accepted);
    t.clock.advance(Duration::from_mins(10));
    assert_eq!(t.accept(&with("d-4", honest)).await.standing, Standing::Held);
    assert_eq!(t.claim(10).await.len(), 2);
    let bells = t.ledger.release(suspect.event.id, &suspect.jobs, &[], &ada(), t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.claim_one().await.id.job, suspect.jobs[0].id);
    let again = t.ledger.release(suspect.event.id, &suspect.jobs, &[], &ada(), t.now()).await;
    assert!(matches!(again, Err(LedgerError::Conflict(_))));
}

async fn what_cannot_be_read_is_kept_without_jobs(t: TestLedger) {
    let mut delivery = t.delivery("d-1", b"\x00\xff not JSON");
    delivery.unreadable = Some("not JSON".into());
    let receipt = t.accept(&delivery).await;
    assert_eq!((receipt.standing, receipt.jobs.len()), (Standing::Quarantined, 0));
    let view = t.ledger.event(delivery.event.id).await.unwrap().unwrap();
    assert_eq!(view.reason.as_deref(), Some("not JSON"));
    assert!(t.claim(10).await.is_empty());
}

async fn bodies_come_back_byte_for_byte(t: TestLedger) {
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let delivery = t.delivery("d-1", &body);
    t.accept(&delivery).await;
    let stored = t.ledger.body(delivery.event.id).await.unwrap().unwrap();
    assert_eq!(stored, delivery.body);
    assert_eq!(stored.bytes().unwrap(), body);
}
