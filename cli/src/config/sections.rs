//! The sections of the file that configure the program itself, one struct for each concern.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemas::Problem;
use secrets::SecretText;
use secrets::vaults::Recipient;
use serde::{Deserialize, Deserializer};
use url::Url;

/// `[server]`: the public door.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerSection {
    /// Where it listens; port 0 takes any free one.
    pub(crate) listen: SocketAddr,
    /// Under which address senders reach it; for people, it is printed at the start.
    pub(crate) public_url: Option<Url>,
    /// The folder where deliveries of senders that never send again wait while the ledger is away.
    pub(crate) spool: PathBuf,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8780)), public_url: None, spool: "nightporter-spool".into() }
    }
}

/// `[operators]`: the private house.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OperatorsSection {
    /// Where the API listens; port 0 takes any free one.
    pub(crate) listen: SocketAddr,
    /// What callers show. With a `SQLite` ledger one is made where none is given.
    pub(crate) token: Option<SecretText>,
}

impl Default for OperatorsSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8781)), token: None }
    }
}

/// `[queue]`: where the ledger and the broker are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct QueueSection {
    /// `sqlite:<path>` or `postgres://...`.
    #[serde(deserialize_with = "text")]
    pub(crate) ledger: Address,
    /// `in-process` or `amqp://...`, which may be several with commas between them.
    #[serde(deserialize_with = "text")]
    pub(crate) broker: Address,
    /// How long what is done is kept in the ledger.
    pub(crate) keep: KeepSection,
    /// The store that the ledger is copied to, where it is a file.
    pub(crate) copy_to: Option<String>,
    /// How often it is.
    pub(crate) copy_every: Span,
}

/// `[queue.keep]`: how long what is done is kept in the ledger.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeepSection {
    /// Senders' own bytes: personal data.
    pub(crate) bodies: Kept,
    /// Events.
    pub(crate) events: Kept,
    /// Jobs and runs, after their end.
    pub(crate) jobs: Kept,
}

impl Default for KeepSection {
    fn default() -> Self {
        let days = |days: u64| Kept(Some(Duration::from_hours(24 * days)));
        Self { bodies: days(30), events: days(90), jobs: days(90) }
    }
}

impl From<KeepSection> for queue::Keep {
    fn from(section: KeepSection) -> Self {
        Self { bodies: section.bodies.0, events: section.events.0, jobs: section.jobs.0 }
    }
}

/// For how long, or `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Kept(Option<Duration>);

impl TryFrom<String> for Kept {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "forever" => Ok(Self(None)),
            text => match text.parse::<Span>()?.0 {
                Duration::ZERO => {
                    Err("what is kept for no time cannot be shown: write 1h or more, or `forever`".into())
                }
                kept => Ok(Self(Some(kept))),
            },
        }
    }
}

impl Default for QueueSection {
    fn default() -> Self {
        Self {
            ledger: Address::known("sqlite:nightporter.db"),
            broker: Address::known("in-process"),
            keep: KeepSection::default(),
            copy_to: None,
            copy_every: Span(Duration::from_secs(30)),
        }
    }
}

/// An address that may hold secrets, of which the engine can often be told without them.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) secret: Option<SecretText>,
    plain: String,
}

impl Address {
    fn known(plain: &str) -> Self {
        Self { secret: None, plain: plain.to_owned() }
    }

    /// The address where it holds no secret.
    pub(crate) fn plain(&self) -> Option<&str> {
        self.secret.is_none().then_some(self.plain.as_str())
    }

    /// The word before the colon, unless it is a secret too.
    pub(crate) fn scheme(&self) -> Option<&str> {
        let scheme = self.plain.split(':').next().unwrap_or_default();
        (!scheme.contains('$')).then_some(scheme)
    }

    /// The file of a `SQLite` ledger.
    pub(crate) fn sqlite_path(&self) -> Option<PathBuf> {
        self.plain().and_then(sqlite_path)
    }
}

/// The file that a `SQLite` address names.
pub(crate) fn sqlite_path(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    Some(path.split('?').next().unwrap_or_default().into())
}

pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    let plain = String::deserialize(deserializer)?;
    let secret = SecretText::parse(&plain).map_err(serde::de::Error::custom)?;
    Ok(Address { secret: (!secret.is_literal()).then_some(secret), plain })
}

/// `[defaults]`: what holds where nothing else is said.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DefaultsSection {
    /// The channel that is told about every discarded job and every missed time of a schedule.
    pub(crate) on_failure: Option<String>,
}

/// `[vault]`: where `${vault:...}` is looked up, and where rotations put new versions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultSection {
    /// Which vault.
    pub(crate) url: VaultAddress,
    /// Of a file: the key that opens it.
    #[serde(default)]
    pub(crate) identity: Option<SecretText>,
    /// Of a file: for whom it is written.
    #[serde(default)]
    pub(crate) recipients: Vec<Recipient>,
}

impl VaultSection {
    /// What is wrong with it beyond its types.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.url, &self.identity) {
            (VaultAddress::File(_), None) => {
                let help = "write `identity = \"${file:nightporter.key}\"`; `nightporter secrets key` makes one";
                problems.push(Problem::new("a vault in a file needs the key that opens it").help(help));
            }
            (VaultAddress::File(_), Some(identity)) if identity.asks_vault() => {
                problems.push(Problem::new("the key cannot lie in the vault that it opens").within("identity"));
            }
            (VaultAddress::Aws { .. }, Some(_)) => {
                problems.push(Problem::new("only a vault in a file has a key of its own").within("identity"));
            }
            _ => {}
        }
        let distinct = self.recipients.iter().enumerate().filter(|(at, one)| !self.recipients[..*at].contains(one));
        if matches!(self.url, VaultAddress::File(_)) && distinct.count() < 2 {
            let help = "write two recipients: the `age1...` of this machine's key, and one whose key lies elsewhere";
            let problem = Problem::new("its key has no second copy: with this machine, all secrets would be lost");
            problems.push(problem.help(help).within("recipients"));
        }
        problems
    }
}

/// `aws-secrets-manager:?region=...&endpoint=...`, or `file:<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum VaultAddress {
    /// AWS Secrets Manager.
    Aws { region: Option<String>, endpoint: Option<String> },
    /// A file that is encrypted by age.
    File(PathBuf),
}

impl TryFrom<String> for VaultAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let right = "write `aws-secrets-manager:?region=eu-central-1` or `file:<path>`";
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() {
                Err(format!("there is no path in it: {right}"))
            } else {
                Ok(Self::File(path.into()))
            };
        }
        let url = Url::parse(&text).map_err(|error| format!("this is no vault's address, {error}: {right}"))?;
        if url.scheme() != "aws-secrets-manager" {
            return Err(format!("there is no vault `{}`: {right}", url.scheme()));
        }
        let (mut region, mut endpoint) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "region" => region = Some(value.into_owned()),
                "endpoint" => endpoint = Some(value.into_owned()),
                other => return Err(format!("a vault's address has no `{other}`, only `region` and `endpoint`")),
            }
        }
        Ok(Self::Aws { region, endpoint })
    }
}

/// `[connections.github]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GithubSection {
    /// A token that may read the repositories' contents.
    pub(crate) token: SecretText,
    /// The API's address, for GitHub Enterprise Server.
    #[serde(default = "github_api")]
    pub(crate) api_url: Url,
}

fn github_api() -> Url {
    const ADDRESS: &str = "https://api.github.com";
    Url::parse(ADDRESS).unwrap_or_else(|error| unreachable!("{ADDRESS}: {error}"))
}

/// `[connections.vercel]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VercelSection {
    /// An access token.
    pub(crate) token: SecretText,
    /// The team, by its id or its slug.
    #[serde(default)]
    pub(crate) team: Option<TeamName>,
    /// The API's address, for tests.
    #[serde(default = "vercel_api")]
    pub(crate) api_url: Url,
}

fn vercel_api() -> Url {
    const ADDRESS: &str = "https://api.vercel.com";
    Url::parse(ADDRESS).unwrap_or_else(|error| unreachable!("{ADDRESS}: {error}"))
}

/// A team at Vercel: `team_...`, or its slug, the first part of its address in the dashboard.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct TeamName(pub(crate) String);

impl TryFrom<String> for TeamName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !text.is_empty() && text.bytes().all(fits) {
            return Ok(Self(text));
        }
        Err(format!("`{text}` is no team: write its id (`team_...`) or its slug (`acme`), without an address"))
    }
}

/// `[worker]`: how jobs are run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkerSection {
    /// How many attempts of a queue run at once, by the queue's name.
    pub(crate) queues: BTreeMap<String, usize>,
    /// How long running attempts may go on after the process was told to stop.
    pub(crate) grace: Span,
    /// How long a worker may be silent before others take over its jobs.
    pub(crate) lease: Span,
    /// Where `work` answers `/healthz` and `/readyz`; nowhere where nothing is said, so that any number of workers run on
    /// one machine.
    pub(crate) listen: Option<SocketAddr>,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            grace: Span(Duration::from_secs(20)),
            lease: Span(queue::QueueConfig::LEASE),
            listen: None,
        }
    }
}

/// `[telemetry]`: what is told about the work, and to whom.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TelemetrySection {
    /// Where traces go, OTLP over HTTP; nowhere unless it is given.
    pub(crate) otlp: Option<Url>,
    /// How log lines look.
    pub(crate) log: LogFormat,
    /// The least important log lines that are written; `NIGHTPORTER_LOG` overrules it.
    pub(crate) level: LogLevel,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs, one object for each line.
    Json,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Something fell short, and somebody should look.
    Error,
    /// Something was not as it should be, and will be tried again.
    Warn,
    /// What the process does.
    #[default]
    Info,
    /// How it does it.
    Debug,
}

/// A length of time: a whole number and `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no length of time: write a whole number and s, m, h or d, such as 90s");
        schemas::period::read(text).map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::super::programs::{AmqpSection, AnnouncementsSection, JobsSection};
    use super::*;

    /// The keys that a type reads, from serde's own message about one that it does not.
    fn keys<T: DeserializeOwned>() -> Vec<String> {
        let error = toml::from_str::<T>("no_such_key = 1").err().unwrap().to_string();
        assert!(error.contains("unknown field `no_such_key`"), "{error}");
        let named = error.split('`').skip(1).step_by(2).map(str::to_owned);
        named.filter(|key| key != "no_such_key").collect()
    }

    /// The page's part under a heading.
    fn part<'a>(page: &'a str, heading: &str) -> &'a str {
        let (_, rest) = page.split_once(&format!("## {heading}\n")).unwrap_or_else(|| panic!("no part {heading}"));
        rest.split("\n## ").next().unwrap()
    }

    #[test]
    fn every_key_is_in_the_reference_and_no_other() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).unwrap();
        let parts = [
            ("[server]", keys::<ServerSection>()),
            ("[operators]", keys::<OperatorsSection>()),
            ("[queue]", keys::<QueueSection>()),
            ("[queue.keep]", keys::<KeepSection>()),
            ("[defaults]", keys::<DefaultsSection>()),
            ("[vault]", keys::<VaultSection>()),
            ("[sources.NAME]", keys::<producer::SourceConfig>()),
            ("[connections.github]", keys::<GithubSection>()),
            ("[connections.vercel]", keys::<VercelSection>()),
            ("[databases.NAME]", keys::<worker::databases::DatabaseConfig>()),
            ("[databases.NAME.migrations]", keys::<worker::databases::MigrationsConfig>()),
            ("[stores.NAME]", keys::<worker::stores::StoreConfig>()),
            ("[stores.NAME.keep]", keys::<worker::backups::keep::Keep>()),
            ("[channels.NAME]", keys::<worker::channels::ChannelConfig>()),
            ("[channels.NAME.pagerduty]", keys::<worker::channels::PagerdutyConfig>()),
            ("[channels.NAME.mail]", keys::<worker::channels::MailConfig>()),
            ("[channels.NAME.mail.login]", keys::<worker::channels::MailLogin>()),
            ("[channels.NAME.resend]", keys::<worker::channels::ResendConfig>()),
            ("[channels.NAME.webhook]", keys::<worker::channels::WebhookConfig>()),
            ("[channels.NAME.heartbeat]", keys::<worker::channels::SwitchConfig>()),
            ("[channels.NAME.route]", keys::<worker::channels::Route>()),
            ("[credentials.NAME]", keys::<worker::credentials::CredentialsConfig>()),
            ("[programs.NAME]", keys::<worker::programs::ProgramConfig>()),
            ("[rotations.NAME]", keys::<worker::rotations::RotationConfig>()),
            ("[rotations.NAME.postgres]", keys::<worker::rotations::rotators::PostgresConfig>()),
            ("[rotations.NAME.random_key]", keys::<worker::rotations::rotators::RandomKeyConfig>()),
            ("[rotations.NAME.webhook]", keys::<worker::rotations::rotators::WebhookConfig>()),
            ("[[rotations.NAME.webhook.github]]", keys::<worker::rotations::rotators::HookConfig>()),
            ("[rotations.NAME.aws_access_key]", keys::<worker::rotations::rotators::AwsKeyConfig>()),
            ("[rotations.NAME.consumers.NAME]", keys::<worker::rotations::ConsumerConfig>()),
            ("[rotations.NAME.consumers.NAME.file]", keys::<worker::rotations::consumers::FileConfig>()),
            ("[rotations.NAME.consumers.NAME.vercel]", keys::<worker::rotations::consumers::VercelConfig>()),
            ("[rotations.NAME.consumers.NAME.vercel.health]", keys::<worker::rotations::consumers::HealthConfig>()),
            (
                "[rotations.NAME.consumers.NAME.github_secret]",
                keys::<worker::rotations::consumers::GithubSecretConfig>(),
            ),
            (
                "[rotations.NAME.consumers.NAME.github_secret.workflow]",
                keys::<worker::rotations::consumers::WorkflowConfig>(),
            ),
            ("[limits.KEY]", keys::<schemas::LimitConfig>()),
            ("[runbooks.NAME]", keys::<schemas::runbook::RunbookConfig>()),
            ("[runbooks.NAME.jobs]", keys::<schemas::runbook::RunbookJobConfig>()),
            ("[runbooks.NAME.jobs.NAME.approval]", keys::<schemas::ApprovalConfig>()),
            ("[[routes]]", keys::<producer::RouteConfig>()),
            ("[routes.run]", keys::<producer::RunConfig>()),
            ("[schedules.NAME]", keys::<producer::ScheduleConfig>()),
            ("[worker]", keys::<WorkerSection>()),
            ("[telemetry]", keys::<TelemetrySection>()),
            ("[heartbeat]", keys::<worker::heartbeat::HeartbeatConfig>()),
            ("[amqp]", keys::<AmqpSection>()),
            ("[amqp.jobs]", keys::<JobsSection>()),
            ("[amqp.announcements]", keys::<AnnouncementsSection>()),
        ];
        for (heading, keys) in parts {
            let rows = part(&page, heading).lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            let rows: Vec<&str> = rows.collect();
            let (mut rows, mut keys) = (rows, keys);
            rows.sort_unstable();
            keys.sort_unstable();
            assert_eq!(rows, keys, "docs/configuration.md on {heading}");
        }
    }

    #[test]
    fn lengths_of_time_have_a_number_and_a_unit() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2h"), Ok(7200));
        for text in ["", "s", "5", "-5s", "1.5h", "5 s", "99999999999999999999d", "5ü"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_done_is_kept_for_some_time_or_for_ever() {
        let read = |text: &str| Kept::try_from(text.to_owned());
        assert_eq!(read("forever"), Ok(Kept(None)));
        assert_eq!(read("2d"), Ok(Kept(Some(Duration::from_hours(48)))));
        assert!(read("0s").is_err() && read("never").is_err());
        let keep = toml::from_str::<QueueSection>("keep = { jobs = '7d' }").unwrap().keep;
        assert_eq!((keep.jobs, keep.bodies), (read("7d").unwrap(), read("30d").unwrap()));
    }

    #[test]
    fn an_address_tells_its_engine_without_its_secrets() {
        let address =
            |plain: &str| text(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(plain)).unwrap();
        assert_eq!(address("sqlite:a/b.db").sqlite_path(), Some("a/b.db".into()));
        assert_eq!(address("postgres://np:${env:PW}@db/np").scheme(), Some("postgres"));
        assert_eq!(address("postgres://np:${env:PW}@db/np").plain(), None);
        assert_eq!(address("${env:LEDGER}").scheme(), None);
    }

    #[test]
    fn a_vault_is_a_region_with_an_endpoint_or_a_file_and_nothing_else() {
        let address = VaultAddress::try_from("aws-secrets-manager:?region=eu-central-1&endpoint=http://x".to_owned());
        let (region, endpoint) = (Some("eu-central-1".to_owned()), Some("http://x".to_owned()));
        assert_eq!(address, Ok(VaultAddress::Aws { region, endpoint }));
        let file = VaultAddress::try_from("file:secrets/np.age".to_owned());
        assert_eq!(file, Ok(VaultAddress::File("secrets/np.age".into())));
        for wrong in ["aws-secrets-manager:?regoin=x", "vault:x", "x", "file:"] {
            assert!(VaultAddress::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_vault_in_a_file_needs_a_key_and_a_second_copy_of_it() {
        let said = |text: &str| {
            let section: VaultSection = toml::from_str(text).unwrap();
            section.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let [ours, theirs] = [(); 2].map(|()| secrets::vaults::new_key().1);
        let vault = |more: &str, recipients: &[&str]| {
            said(&format!("url = 'file:np.age'\n{more}\nrecipients = {recipients:?}"))
        };
        let key = "identity = '${file:np.key}'";
        assert_eq!(vault(key, &[&ours, &theirs]), "");
        for alone in [&[][..], &[&*ours], &[&*ours, &*ours]] {
            assert!(vault(key, alone).starts_with("recipients: its key has no second copy"), "{alone:?}");
        }
        assert!(vault("", &[&ours, &theirs]).contains("needs the key"));
        assert!(vault("identity = '${vault:x}'", &[&ours, &theirs]).starts_with("identity: the key cannot lie"));
        assert!(
            said("url = 'aws-secrets-manager:'\nidentity = '${env:X}'").starts_with("identity: only a vault in a file")
        );
    }
}
