//! What is a target's own: how `PagerDuty` is raised and resolved, what a mail server wants, what a key of Resend's means.

use schemas::{JobId, Timestamp};
use secrets::Resolver;
use serde_json::{Value, json};
use tests::mail::MailServer;
use tests::receiver::Receiver;
use tests::services::{Alert, Fault, Services};
use worker::Failure;
use worker::channels::{Action, Alarm, Channel, Fate, Message, NotSent, Posting, Severity, open};

use super::config;

async fn opened(channel: Value) -> Box<dyn Channel> {
    open("ops", &config(channel), &Resolver::default(), &worker::world::http_client()).await.expect("a channel")
}

fn message(text: &str) -> Message {
    Message { title: "deploy failed".into(), text: text.into(), severity: Severity::Critical, alarm: None }
}

fn doing(action: Action) -> Message {
    Message { alarm: Some(Alarm { key: "disk-full".into(), action }), ..message("") }
}

async fn say(channel: &dyn Channel, message: &Message, job: u128) -> Result<(), NotSent> {
    let posting =
        Posting { job: JobId(uuid::Uuid::from_u128(job)), created_at: Timestamp::UNIX_EPOCH, may_repeat: false };
    channel.send(message, &posting, Timestamp::UNIX_EPOCH).await
}

fn words(sent: Result<(), NotSent>) -> (Fate, &'static str, String) {
    let NotSent { fate, failure } = sent.expect_err("it was not delivered");
    match failure {
        Failure::Retry { error, .. } => (fate, "retry", format!("{error:#}")),
        Failure::Discard(error) => (fate, "discard", format!("{error:#}")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_alarm_is_one_incident_however_often_it_is_raised_and_ends_when_it_is_resolved() {
    let services = Services::start().await;
    let channel = opened(services.pagerduty()).await;
    for (job, action) in [Action::Trigger, Action::Trigger, Action::Acknowledge].into_iter().enumerate() {
        say(&*channel, &doing(action), job as u128).await.unwrap();
    }
    assert_eq!(services.alert("disk-full"), Alert { open: true, incidents: 1, absorbed: 1 });
    say(&*channel, &doing(Action::Resolve), 9).await.unwrap();
    assert_eq!(services.alert("disk-full"), Alert { open: false, incidents: 1, absorbed: 1 });
}

#[tokio::test]
async fn a_routing_key_that_pagerduty_does_not_know_is_said() {
    let services = Services::start().await;
    let mut channel = services.pagerduty();
    channel["pagerduty"]["routing_key"] = "0".repeat(32).into();
    let (fate, done, text) = words(say(&*opened(channel).await, &message("x"), 1).await);
    assert_eq!((fate, done), (Fate::NotDelivered, "discard"));
    assert!(text.contains("routing key"), "{text}");
}

#[tokio::test]
async fn another_text_under_the_same_id_is_not_sent_by_resend_and_not_taken_for_delivered() {
    let services = Services::start().await;
    services.then([Fault::Lost]);
    let channel = opened(services.resend()).await;
    assert_eq!(words(say(&*channel, &message("one"), 1).await).1, "retry");
    let (fate, done, text) = words(say(&*channel, &message("two"), 1).await);
    assert_eq!((fate, done), (Fate::Unknown, "discard"), "{text}");
    say(&*channel, &message("one"), 1).await.unwrap();
    assert_eq!(services.mails().len(), 1);
    assert_eq!(services.mails()[0]["subject"], "[critical] deploy failed");
}

#[tokio::test]
async fn mail_is_protected_as_configured_and_logged_in() {
    let server = MailServer::start().await;
    for (tls, is_protected) in [("tls", true), ("starttls", true), ("none", false)] {
        say(&*opened(json!({"mail": server.config(tls)})).await, &message("grüße\n.\nend"), 1).await.unwrap();
        let letter = server.letters(1).await.pop().unwrap();
        assert_eq!((letter.tls, letter.user.as_deref()), (is_protected, Some("np")), "{tls}");
        assert_eq!((letter.from.as_str(), &letter.to[..]), ("np@example.com", &["ops@example.com".to_owned()][..]));
        assert_eq!(letter.header("Subject"), "[critical] deploy failed");
    }
    let letters = server.letters(3).await;
    assert_eq!(server.effects(), 1, "one job, one Message-ID");
    assert_eq!(letters[0].letter, letters[1].letter, "one job, one letter");
}

#[tokio::test]
async fn a_server_that_is_not_the_one_it_should_be_gets_neither_password_nor_mail() {
    let server = MailServer::start().await;
    for tls in ["tls", "starttls"] {
        let mut mail = server.config(tls);
        mail.as_object_mut().unwrap().remove("ca");
        let (fate, done, text) = words(say(&*opened(json!({"mail": mail})).await, &message("x"), 1).await);
        assert_eq!((fate, done), (Fate::NotDelivered, "retry"), "{text}");
        assert!(text.contains("TLS failed"), "{text}");
    }
    // The port without TLS offers no STARTTLS, as a man in the middle would.
    let mut mail = server.config("none");
    mail["tls"] = "starttls".into();
    let (fate, done, text) = words(say(&*opened(json!({"mail": mail})).await, &message("x"), 1).await);
    assert_eq!((fate, done), (Fate::NotDelivered, "discard"), "{text}");
    assert_eq!(server.letters(0).await.len(), 0);
}

#[tokio::test]
async fn each_answer_of_a_mail_server_is_retried_or_given_up_by_its_first_digit_and_place() {
    let mut server = MailServer::start().await;
    let channel = opened(json!({"mail": server.config("none")})).await;
    for (at, reply, expected, part) in [
        ("connect", "421 4.3.2 closing", "retry", "for now"),
        ("connect", "554 5.7.1 go away", "discard", "from here"),
        ("login", "535 5.7.8 wrong", "discard", "login"),
        ("login", "454 4.7.0 later", "retry", "for now"),
        ("sender", "550 5.7.1 no", "discard", "`from`"),
        ("recipient", "450 4.2.1 greylisted", "retry", "recipient"),
        ("recipient", "550 5.1.1 unknown", "discard", "`to`"),
        ("message", "451 4.3.0 later", "retry", "for now"),
        ("message", "552 5.3.4 too large", "discard", "refuses the message"),
    ] {
        server.fail(at, reply).await;
        let (fate, done, text) = words(say(&*channel, &message("x"), 1).await);
        assert_eq!((fate, done), (Fate::NotDelivered, expected), "{at} {reply}: {text}");
        assert!(text.starts_with(&format!("it answered {}", &reply[..3])) && text.contains(part), "{at}: {text}");
    }
    assert_eq!(server.letters(0).await.len(), 0);
}

#[tokio::test]
async fn one_recipient_who_is_refused_keeps_the_mail_from_no_other_and_is_told() {
    let mut server = MailServer::start().await;
    let mut mail = server.config("none");
    mail["to"] = json!(["gone@example.com", "ops@example.com"]);
    server.fail("recipient", "550 5.1.1 unknown").await;
    let (fate, done, text) = words(say(&*opened(json!({"mail": mail})).await, &message("x"), 1).await);
    assert_eq!((fate, done), (Fate::Unknown, "discard"));
    assert!(text.contains("refuses 1 of the 2 recipients, the others have it"), "{text}");
    assert_eq!(server.letters(1).await[0].to, ["ops@example.com"]);
}

#[tokio::test]
async fn a_switch_hears_a_sign_of_life_or_what_is_wrong_in_the_words_of_its_service() {
    let receiver = Receiver::start().await;
    for service in ["healthchecks", "sentry"] {
        let url = format!("{}/{service}/", receiver.url);
        let channel = opened(json!({"heartbeat": {"url": url, "service": service}})).await;
        say(&*channel, &Message { severity: Severity::Info, ..message("all well") }, 1).await.unwrap();
        say(&*channel, &message("no room"), 2).await.unwrap();
    }
    let asked: Vec<String> = receiver.requests().iter().map(|it| format!("{}?{}", it.path, it.query)).collect();
    assert_eq!(asked, ["/healthchecks/?", "/healthchecks/fail?", "/sentry/?status=ok", "/sentry/?status=error"]);
    assert_eq!(&receiver.requests()[1].raw[..], b"[critical] deploy failed\nno room");
}
