//! Mail by SMTP (RFC 5321), one connection for each message.
//!
//! SMTP knows no message by an id, and an answer lost after the message's last line leaves its fate unknown: it is the
//! channel's choice to repeat or to report. The `Message-ID` is made from the job's id, so that mailboxes which look at it
//! show a repeat once. Until that last line nothing has been delivered.
//!
//! All recipients get one message. One that is refused for now puts it off for all; one that is refused for good is left
//! out, the others get it, and the job is discarded, so that somebody corrects the list.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message as Letter};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail as Sender, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use schemas::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::{Instrument, info_span};

use super::config::{MailConfig, MailTls};
use super::message::cut;
use super::verdict::{Answer, Fate, NotSent, judge};
use super::{Channel, Message, OnUnknown, Posting, Repeats, tables};
use crate::handler::{Failure, OrFail};

/// The dialogue up to the message may take so long.
const INTRODUCTION: Duration = Duration::from_secs(25);
/// Servers look into messages before they answer; RFC 5321 grants them ten minutes, a job has less.
const TAKING: Duration = Duration::from_secs(25);
/// A subject is one line.
const LONGEST_SUBJECT: usize = 300;
/// Longer texts are cut: nobody reads them in a mail.
const LARGEST_TEXT: usize = 200_000;

/// A mail server, and from whom to whom mail goes.
pub(super) struct Mail {
    config: MailConfig,
    credentials: Option<Credentials>,
    on_unknown: OnUnknown,
}

impl Mail {
    pub(super) fn new(config: &MailConfig, password: Option<&SecretString>, on_unknown: OnUnknown) -> Self {
        let login = config.login.as_ref().zip(password);
        let credentials =
            login.map(|(login, password)| Credentials::new(login.user.clone(), password.expose_secret().to_owned()));
        Self { config: config.clone(), credentials, on_unknown }
    }

    /// The dialogue up to the message: how many recipients were refused for good.
    async fn introduce(&self) -> Result<(AsyncSmtpConnection, usize), NotSent> {
        let mut server = self.connect().await?;
        if let Some(credentials) = &self.credentials {
            server.auth(DEFAULT_MECHANISMS, credentials).await.map_err(|error| refused("login", &error))?;
        }
        let from = self.config.from.mailbox().email.clone();
        server.command(Sender::new(Some(from), Vec::new())).await.map_err(|error| refused("", &error))?;
        let mut refusals = Vec::new();
        for to in &self.config.to {
            match server.command(Rcpt::new(to.mailbox().email.clone(), Vec::new())).await {
                Ok(_) => {}
                Err(error) if error.is_permanent() => refusals.push(error),
                Err(error) => return Err(refused("recipient", &error)),
            }
        }
        if let Some(error) = refusals.first().filter(|_| refusals.len() == self.config.to.len()) {
            return Err(refused("recipient", error));
        }
        server.command(Data).await.map_err(|error| refused("", &error))?;
        Ok((server, refusals.len()))
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, NotSent> {
        let MailConfig { host, tls, .. } = &self.config;
        let address = (host.as_str(), self.config.port());
        let hello = ClientId::Domain(self.config.from.mailbox().email.domain().to_owned());
        let implicit = match tls {
            MailTls::Tls => Some(self.trust().await?),
            MailTls::Starttls | MailTls::None => None,
        };
        let server = AsyncSmtpConnection::connect_tokio1(address, Some(INTRODUCTION / 2), &hello, implicit, None).await;
        let mut server = server.map_err(|error| refused("", &error))?;
        if *tls == MailTls::Starttls {
            // A server that offers none is refused: a man in the middle would look the same.
            server.starttls(self.trust().await?, &hello).await.map_err(|error| refused("", &error))?;
        }
        Ok(server)
    }

    /// Whose certificates are trusted: the system's authorities, and the configured one.
    async fn trust(&self) -> Result<TlsParameters, NotSent> {
        let mut builder = TlsParameters::builder(self.config.host.clone());
        if let Some(path) = &self.config.ca {
            let doing = format!("reading the certificate {}", path.display());
            let pem = tokio::fs::read(path).await.or_discard(&doing).map_err(NotSent::before_sending)?;
            let ca = Certificate::from_pem(&pem).or_discard(&doing).map_err(NotSent::before_sending)?;
            builder = builder.add_root_certificate(ca);
        }
        builder.build_rustls().or_discard("setting up TLS").map_err(NotSent::before_sending)
    }

    fn letter(&self, message: &Message, posting: &Posting) -> Result<Vec<u8>, Failure> {
        let from = self.config.from.mailbox();
        let domain = from.email.domain();
        let mut letter = Letter::builder()
            .from(from.clone())
            .date(SystemTime::from(posting.created_at))
            .message_id(Some(format!("<nightporter.{}@{domain}>", posting.job)))
            .subject(cut(&message.headline(posting.may_repeat), LONGEST_SUBJECT))
            .header(ContentType::TEXT_PLAIN)
            // So that no holiday answers (RFC 3834).
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".into()));
        for to in &self.config.to {
            letter = letter.to(to.mailbox().clone());
        }
        if let Some(alarm) = &message.alarm {
            // Mail programs show what refers to the same as one thread.
            let about = hex::encode(&Sha256::digest(&alarm.key)[..16]);
            letter = letter.references(format!("<nightporter.alarm.{about}@{domain}>"));
        }
        let letter = letter.body(cut(&message.text, LARGEST_TEXT)).or_discard("writing the mail")?;
        Ok(letter.formatted())
    }

    async fn deliver(&self, letter: &[u8]) -> Result<(), NotSent> {
        let late =
            |_| NotSent::before_sending(Failure::retry(anyhow::anyhow!("the mail server did not answer in time")));
        let (mut server, refusals) = timeout(INTRODUCTION, self.introduce()).await.map_err(late)??;
        let taken = match timeout(TAKING, server.message(letter)).await {
            Ok(taken) => taken.map_err(|error| not_taken(&error)),
            Err(_) => Err(unknown(anyhow::anyhow!("the mail server did not answer in time"))),
        };
        // Whatever comes of it: the message has been taken, or not.
        let _left = timeout(Duration::from_secs(1), server.abort()).await;
        taken?;
        if refusals > 0 {
            let failure = Failure::Discard(anyhow::anyhow!(
                "the mail server refuses {refusals} of the {} recipients, the others have it; correct `to`",
                self.config.to.len()
            ));
            return Err(NotSent { fate: Fate::Unknown, failure });
        }
        Ok(())
    }
}

#[async_trait]
impl Channel for Mail {
    fn repeats(&self) -> Repeats {
        self.on_unknown.into()
    }

    async fn send(&self, message: &Message, posting: &Posting, _wall: Timestamp) -> Result<(), NotSent> {
        let letter = self.letter(message, posting).map_err(NotSent::before_sending)?;
        let span = info_span!(
            "SMTP",
            otel.kind = "client",
            server.address = self.config.host,
            server.port = self.config.port()
        );
        self.deliver(&letter).instrument(span).await
    }
}

/// What an error before the message means: nothing was delivered.
fn refused(stage: &str, error: &lettre::transport::smtp::Error) -> NotSent {
    if let Some(not_sent) = error.status().and_then(|code| judged(code.into(), stage)) {
        return not_sent;
    }
    let words = anyhow::anyhow!("speaking with the mail server: {}", words(error));
    // What the library itself refuses (no TLS offered, no way to log in) stays so.
    NotSent::before_sending(if error.is_client() { Failure::Discard(words) } else { Failure::retry(words) })
}

/// What an error after the message means: without an answer nobody knows.
fn not_taken(error: &lettre::transport::smtp::Error) -> NotSent {
    let answered = error.status().and_then(|code| judged(code.into(), "message"));
    answered.unwrap_or_else(|| unknown(anyhow::anyhow!("the connection broke before its answer: {}", words(error))))
}

fn unknown(error: anyhow::Error) -> NotSent {
    let failure = Failure::Retry { error: error.context("the message may have been delivered"), after: None };
    NotSent { fate: Fate::Unknown, failure }
}

fn judged(status: u16, stage: &str) -> Option<NotSent> {
    judge(tables::MAIL, &Answer { status, word: stage, retry_after: None }).err()
}

/// The error with its causes, without what the server said: that is a stranger's text.
fn words(error: &lettre::transport::smtp::Error) -> String {
    let kind = if error.is_tls() || is_of_tls(error) {
        "TLS failed; check the server's certificate, `host`, `port`, `tls` and `ca`"
    } else if error.is_client() {
        "it offers no TLS or no way to log in; check `tls` and `login`"
    } else if error.is_timeout() {
        "it did not answer in time"
    } else if error.is_response() {
        "it broke off, or does not speak SMTP; check `host`, `port` and `tls`"
    } else {
        "the connection failed; check `host` and `port`"
    };
    kind.to_owned()
}

/// Whether TLS itself is what failed: before the first word of SMTP the library takes that for a broken connection.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    of_io.is_some_and(<dyn std::error::Error + std::marker::Send + std::marker::Sync + 'static>::is::<rustls::Error>)
        || error.source().is_some_and(is_of_tls)
}

/// A mailbox in the configuration: `ops@example.com`, or `Operations <ops@example.com>`.
pub(super) fn mailbox(text: &str) -> Result<Mailbox, String> {
    let mailbox: Mailbox = text.parse().map_err(|_| {
        format!("`{text}` is no mail address; write `ops@example.com` or `Operations <ops@example.com>`")
    })?;
    // Others need an extension that few servers speak.
    if !mailbox.email.to_string().is_ascii() {
        return Err(format!("the mail address `{text}` must be in ASCII; write its domain in punycode (`xn--...`)"));
    }
    Ok(mailbox)
}

#[cfg(test)]
mod tests {
    use schemas::JobId;
    use serde_json::json;

    use super::super::{Action, Alarm, Severity};
    use super::*;

    fn mail() -> Mail {
        let config = json!({"host": "mail.test", "from": "Nightporter <np@example.com>", "to": ["ops@example.com"]});
        Mail::new(&serde_json::from_value(config).unwrap(), None, OnUnknown::Repeat)
    }

    fn letter(message: &Message) -> String {
        let now = Timestamp::UNIX_EPOCH;
        let posting = Posting { job: JobId(uuid::Uuid::nil()), created_at: now, may_repeat: false };
        String::from_utf8(mail().letter(message, &posting).unwrap()).unwrap()
    }

    #[test]
    fn the_same_job_writes_the_same_letter_and_a_subject_adds_no_header() {
        let message = Message {
            title: "it\r\nBcc: all@example.com".into(),
            text: "zu spät\n.\nend".into(),
            severity: Severity::Critical,
            alarm: None,
        };
        let letter = letter(&message);
        assert_eq!(letter, super::tests::letter(&message));
        assert!(letter.is_ascii(), "it needs no extension of the server");
        let headers: Vec<&str> = letter.split("\r\n\r\n").next().unwrap().lines().collect();
        assert!(headers.contains(&"Message-ID: <nightporter.00000000-0000-0000-0000-000000000000@example.com>"));
        assert!(headers.contains(&"Date: Thu, 01 Jan 1970 00:00:00 +0000"), "{headers:?}");
        assert!(!headers.iter().any(|line| line.starts_with("Bcc")), "{headers:?}");
    }

    #[test]
    fn messages_about_one_alarm_are_one_thread() {
        let of = |action| Message {
            title: "backup".into(),
            text: String::new(),
            severity: Severity::Critical,
            alarm: Some(Alarm { key: "backup".into(), action }),
        };
        let thread = |letter: String| letter.lines().find(|line| line.starts_with("References:")).unwrap().to_owned();
        let (raised, over) = (letter(&of(Action::Trigger)), letter(&of(Action::Resolve)));
        assert!(over.contains("Subject: [resolved] backup"), "{over}");
        assert_eq!(thread(raised), thread(over));
    }

    #[test]
    fn what_is_no_address_is_said() {
        assert!(mailbox("ops").unwrap_err().contains("`ops` is no mail address"));
        assert!(mailbox("a@exämple.com").unwrap_err().contains("punycode"));
        assert_eq!(mailbox("Ops <ops@example.com>").unwrap().to_string(), "Ops <ops@example.com>");
    }
}
