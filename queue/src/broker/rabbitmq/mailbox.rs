//! The queue that other programs lay messages into, and the one beside it for what was refused.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::link::Live;
use super::{Fault, within};

/// The broker gives a message that came back so often to the other queue, by itself. A ledger that is away for days must
/// not bring a good message there, and newer brokers count to 20 where nothing is said.
const MOST_DELIVERIES: i32 = 1_000_000;

/// The queue for what was refused in this one.
pub(super) fn dead_letters_of(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Makes both queues, unless they are there. One that is there may be of any making: whoever runs the broker knows best, and
/// may let us make none.
pub(super) async fn is_there(live: &Live, queue: &str) -> Result<(), Fault> {
    dead_letters_are_there(live, queue).await?;
    let mut arguments = quorum();
    // What the broker itself gives up is not lost either.
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(&dead_letters_of(queue)));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish")); // that strategy asks for it
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(MOST_DELIVERIES));
    declare(live, queue, arguments).await
}

/// Makes the queue for what was refused, unless it is there.
pub(super) async fn dead_letters_are_there(live: &Live, queue: &str) -> Result<(), Fault> {
    declare(live, &dead_letters_of(queue), quorum()).await
}

async fn declare(live: &Live, name: &str, arguments: FieldTable) -> Result<(), Fault> {
    let declare = async |passive: bool, arguments: FieldTable| {
        // A channel of its own: a refusal closes it.
        let channel = live.channel().await?;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        within("declare", channel.queue_declare(name.into(), options, arguments)).await.map(drop)
    };
    match declare(false, arguments).await {
        Err(fault) if fault.channel_only => declare(true, FieldTable::default()).await,
        asked => asked,
    }
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
