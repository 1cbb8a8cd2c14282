//! Another program, as it sees us: it lays messages into queues and hears what is announced.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde_json::Value;
use uuid::Uuid;

use crate::porter::eventually;

/// A program that is connected to the broker.
pub struct Program {
    url: String,
    connection: Connection,
    channel: Channel,
}

/// What a program hears of an exchange.
pub struct Ear(Consumer);

impl Program {
    /// Connects to the server that all tests share.
    pub async fn connect() -> Self {
        Self::connect_to(&crate::server("NIGHTPORTER_TEST_AMQP")).await
    }

    /// Connects to a server.
    pub async fn connect_to(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { url: url.to_owned(), connection, channel }
    }

    /// Lays a message into a queue, once there is such a queue.
    pub async fn send(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        eventually(&format!("{queue} takes a message"), async || {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let publish = self.channel.basic_publish("".into(), queue.into(), options, body, properties.clone());
            let confirmed = publish.await.expect("published").await.expect("confirmed");
            matches!(confirmed, Confirmation::Ack(None)).then_some(())
        })
        .await;
    }

    /// Lays a message with this id into a queue.
    pub async fn ask(&self, queue: &str, id: &str, message: &Value) {
        let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
        self.send(queue, message.to_string().as_bytes(), properties).await;
    }

    /// Takes the next message out of a queue, once there is one.
    pub async fn take(&self, queue: &str) -> Delivery {
        eventually(&format!("a message in {queue}"), async || {
            // Whoever asks for a queue that is just being made loses the connection.
            let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.expect("the broker");
            let channel = connection.create_channel().await.expect("a channel");
            let options = BasicGetOptions { no_ack: true };
            channel.basic_get(queue.into(), options).await.ok().flatten().map(|message| message.delivery)
        })
        .await
    }

    /// Takes the next message out of a queue, and gives it back.
    pub async fn give_back(&self, queue: &str) {
        let taken = async || {
            let got =
                self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("the queue is there");
            got.map(|message| message.delivery)
        };
        let delivery = eventually(&format!("a message in {queue}"), taken).await;
        let again = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        delivery.acker.nack(again).await.expect("given back");
    }

    /// How many messages lie in a queue that nobody holds.
    pub async fn lying_in(&self, queue: &str) -> u32 {
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        declared.expect("the queue is there").message_count()
    }

    /// Makes a queue.
    pub async fn declare(&self, queue: &str) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("declared");
    }

    /// Makes a queue that takes one message of an exchange, and refuses others while that lies there.
    pub async fn declare_narrow(&self, queue: &str, exchange: &str) {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare =
            self.channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default());
        declare.await.expect("the exchange");
        let mut narrow = FieldTable::default();
        narrow.insert("x-max-length".into(), AMQPValue::LongInt(1));
        narrow.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, narrow).await.expect("declared");
        let (to, all) = (queue.into(), "#".into());
        let bind =
            self.channel.queue_bind(to, exchange.into(), all, QueueBindOptions::default(), FieldTable::default());
        bind.await.expect("bound");
    }

    /// Deletes a queue, with all that lies in it.
    pub async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    }

    /// Hears what is published to a topic exchange from now on, under these routing keys.
    pub async fn listen(&self, exchange: &str, keys: &[&str]) -> Ear {
        let channel = self.connection.create_channel().await.expect("a channel");
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default());
        declare.await.expect("the exchange");
        let queue = format!("ear-{}", Uuid::new_v4());
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.expect("a queue");
        for key in keys {
            let (to, key) = (queue.as_str().into(), (*key).into());
            let bind = channel.queue_bind(to, exchange.into(), key, QueueBindOptions::default(), FieldTable::default());
            bind.await.expect("bound");
        }
        channel.basic_qos(100, BasicQosOptions::default()).await.expect("a prefetch");
        let consume = channel.basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        Ear(consume.await.expect("a consumer"))
    }
}

impl Ear {
    /// The next announcement, and the routing key that it came by.
    pub async fn next(&mut self) -> (String, Value) {
        let heard = tokio::time::timeout(Duration::from_mins(1), self.0.next()).await;
        let delivery = heard.expect("nothing is announced").expect("it goes on").expect("a message");
        delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
        assert_eq!(delivery.properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
        assert_eq!(delivery.properties.delivery_mode(), &Some(2), "it is lost when the broker begins anew");
        let announcement: Value = serde_json::from_slice(&delivery.data).expect("JSON");
        assert_eq!(announcement["id"], delivery.properties.message_id().as_ref().unwrap().as_str());
        (delivery.routing_key.as_str().to_owned(), announcement)
    }

    /// The next `count` announcements that were not heard before, by their ids, in the order in which they came.
    pub async fn hear(&mut self, count: usize) -> Vec<(String, Value)> {
        let mut heard: Vec<(String, Value)> = Vec::new();
        let deadline = tokio::time::Instant::now() + Duration::from_mins(2);
        while heard.len() < count {
            // What was heard already may come again and again.
            assert!(tokio::time::Instant::now() < deadline, "only this is announced: {heard:?}");
            let (key, announcement) = self.next().await;
            if heard.iter().all(|(_, known)| known["id"] != announcement["id"]) {
                heard.push((key, announcement));
            }
        }
        heard
    }
}
