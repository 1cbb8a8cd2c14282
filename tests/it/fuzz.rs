//! What the normalizers make of fuzzed deliveries is read back from each ledger as it was.

use queue::ledger::{NewDelivery, Repeats, StoredBody};
use schemas::{Event, EventId, TraceContext};
use tests::fuzz::{inputs, sources};
use tests::ledgers::TestLedger;

const INPUTS: u32 = 1_000;

#[tokio::test]
async fn whatever_the_normalizers_accept_each_ledger_keeps_as_it_was() {
    for t in [TestLedger::sqlite().await, TestLedger::postgres().await] {
        let read: Vec<Event> =
            inputs(&sources::corpus(), INPUTS).iter().filter_map(|it| sources::delivery(it)).collect();
        let mut kept = 0;
        for chunk in read.chunks(100) {
            let deliveries: Vec<NewDelivery> =
                chunk.iter().enumerate().map(|(number, it)| entry(&t, it, kept + number)).collect();
            let (receipts, _bells) = t.ledger.accept(&deliveries, t.now()).await.expect("they are accepted");
            for (delivery, receipt) in deliveries.iter().zip(receipts) {
                let view = t.ledger.event(receipt.event).await.expect("it can be read").expect("it is there");
                assert_eq!(view.event, delivery.event);
            }
            kept += chunk.len();
        }
        assert!(kept > INPUTS as usize / 10, "only {kept} were readable");
        println!("{INPUTS} inputs, {kept} events kept and read back");
    }
}

fn entry(t: &TestLedger, event: &Event, number: usize) -> NewDelivery {
    t.clock.advance(std::time::Duration::from_millis(1));
    NewDelivery {
        event: Event { id: EventId::at(t.now()), delivery_id: format!("{number}"), ..event.clone() },
        unreadable: None,
        body: StoredBody::new(b"{}", [0; 32], "application/json".into(), "{}".into()),
        repeats: Repeats::AreNew,
        jobs: Vec::new(),
        runs: Vec::new(),
        route_errors: Vec::new(),
        config_digest: "fuzz".into(),
        trace: TraceContext::default(),
    }
}
