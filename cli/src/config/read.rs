//! From the file's text to a [`Config`], noting all that is wrong on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use producer::{RouteConfig, Routes, RunConfig, ScheduleConfig, SourceConfig, Sources, Startable};
use schemas::runbook::RunbookConfig;
use schemas::{Names, Problem, Runbook, Schedule};
use secrets::SecretText;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use worker::WorldConfig;
use worker::backups::keep::Keep;
use worker::channels::{ChannelConfig, route};
use worker::credentials::CredentialsConfig;
use worker::heartbeat::HeartbeatConfig;
use worker::programs::ProgramConfig;
use worker::rotations::{self, RotationConfig};
use worker::stores::StoreConfig;
use worker::world::{Connections, GithubConnection, VercelConnection};

use super::document::Document;
use super::finding::{Finding, from_serde};
use super::programs::AmqpSection;
use super::sections::{GithubSection, QueueSection, VaultSection, VercelSection, WorkerSection};
use super::{Config, DefaultsSection, literals};

/// The tables that the file may have.
const TABLES: [&str; 21] = [
    "server",
    "operators",
    "queue",
    "defaults",
    "vault",
    "sources",
    "connections",
    "databases",
    "stores",
    "channels",
    "credentials",
    "programs",
    "rotations",
    "limits",
    "runbooks",
    "routes",
    "schedules",
    "worker",
    "telemetry",
    "heartbeat",
    "amqp",
];

/// How much of the digest is kept with each event: enough to tell configurations apart.
const DIGEST_BYTES: usize = 6;

/// Heartbeats come three times in a lease, and a worker stops its jobs at two thirds of it.
const SHORTEST_LEASE: Duration = Duration::from_secs(3);

/// Copies of the ledger: more often they only cost, and less often they are none.
const COPY_EVERY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// Reads a file's text. There is a configuration exactly if there is no error among the findings.
pub(super) fn read(text: &str) -> (Option<Config>, Vec<Finding>) {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(mut findings) => {
            findings.sort_by_key(|finding| finding.place);
            return (None, findings);
        }
    };
    let mut reader = Reader { document, findings: Vec::new() };
    let config = reader.config(text);
    let mut findings = reader.findings;
    findings.extend(literals::warnings(&reader.document));
    findings.sort_by_key(|finding| (finding.place, finding.path.clone()));
    (config.filter(|_| !findings.iter().any(Finding::is_error)), findings)
}

struct Reader<'t> {
    document: Document<'t>,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    /// None where something could not be read; something wrong may be found nevertheless.
    fn config(&mut self, text: &str) -> Option<Config> {
        self.unknown_names(&[], &TABLES);
        self.unknown_names(&["connections"], &["github", "vercel"]);
        let server = self.section("server");
        let operators = self.section("operators");
        let queue = self.section("queue");
        let defaults = self.section("defaults");
        let vault = self.vault();
        let worker = self.section("worker");
        let telemetry = self.section("telemetry");
        let heartbeat = self.heartbeat();
        let mut world = WorldConfig {
            databases: self.named("databases"),
            stores: self.stores(),
            channels: self.channels(),
            credentials: self.credentials(),
            programs: self.programs(),
            rotations: self.rotations(),
            connections: Connections { github: self.github(), vercel: self.vercel() },
            limits: self.named("limits"),
            sources: self.names().sources,
            runbooks: Arc::default(),
        };
        let registry = worker::jobs::registry();
        let catalog = Arc::new(registry.catalog(self.names()).with_limits(world.limits.clone()));
        catalog.check_limits().into_iter().for_each(|problem| self.problem(problem));
        let runbooks = self.runbooks(&catalog);
        let startable = Startable { catalog: Arc::clone(&catalog), runbooks: Arc::new(runbooks) };
        world.runbooks = Arc::clone(&startable.runbooks);
        let sources = self.sources();
        self.check_webhooks(&world.rotations, &sources);
        self.check_connections(&world.rotations);
        let routes = self.routes(&startable, &sources);
        let schedules = self.schedules(&startable);
        let amqp = self.amqp(queue.as_ref(), &catalog);
        self.check_queue(queue.as_ref());
        self.check_copies(queue.as_ref());
        self.check_defaults(defaults.as_ref());
        self.check_worker(worker.as_ref(), &registry);
        self.check_vault();
        Some(Config {
            digest: hex::encode(&Sha256::digest(text)[..DIGEST_BYTES]),
            server: server?,
            operators: operators?,
            queue: queue?,
            defaults: defaults?,
            vault,
            worker: worker?,
            telemetry: telemetry?,
            heartbeat,
            amqp,
            world,
            sources,
            startable,
            routes,
            schedules,
        })
    }

    fn part<T: DeserializeOwned>(&mut self, path: &[&str]) -> Option<T> {
        self.document.read(path, &mut self.findings)
    }

    /// A section, or its defaults where it is absent.
    fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.document.part(&[name]) {
            None => Some(T::default()),
            Some(_) => self.part(&[name]),
        }
    }

    /// A table of things by name, those that can be read.
    fn named<T: DeserializeOwned>(&mut self, table: &str) -> BTreeMap<String, T> {
        let names = self.names_in(table);
        names.into_iter().filter_map(|name| self.part(&[table, &name]).map(|thing| (name, thing))).collect()
    }

    fn names_in(&mut self, table: &str) -> Vec<String> {
        if self.document.part(&[table]).is_some_and(|part| !part.get_ref().is_table()) {
            self.problem(Problem::new("this must be a table of names").within(table));
        }
        self.document.names(&[table])
    }

    /// All names, those of things that can't be read too: a mistake in a database is no reason to call it unknown.
    fn names(&self) -> Names {
        let names = |table| self.document.names(&[table]).into_iter().collect();
        Names {
            databases: names("databases"),
            stores: names("stores"),
            channels: names("channels"),
            credentials: names("credentials"),
            programs: names("programs"),
            sources: names("sources"),
            rotations: names("rotations"),
            runbooks: self.inputs_of_runbooks(),
        }
    }

    fn inputs_of_runbooks(&self) -> BTreeMap<String, BTreeSet<String>> {
        let inputs = |name: &String| self.document.names(&["runbooks", name, "inputs"]).into_iter().collect();
        self.document.names(&["runbooks"]).into_iter().map(|name| (name.clone(), inputs(&name))).collect()
    }

    fn channels(&mut self) -> BTreeMap<String, ChannelConfig> {
        let channels: BTreeMap<String, ChannelConfig> = self.named("channels");
        for (name, config) in &channels {
            for problem in config.problems() {
                self.problem(problem.within(name).within("channels"));
            }
        }
        for problem in route::problems(&channels, &self.names().channels) {
            self.problem(problem);
        }
        channels
    }

    fn heartbeat(&mut self) -> Option<HeartbeatConfig> {
        let heartbeat: HeartbeatConfig = self.part(&["heartbeat"])?;
        for problem in heartbeat.problems() {
            self.problem(problem.within("heartbeat"));
        }
        Some(heartbeat)
    }

    fn amqp(&mut self, queue: Option<&QueueSection>, catalog: &schemas::Catalog) -> Option<AmqpSection> {
        let amqp: AmqpSection = self.part(&["amqp"])?;
        for problem in amqp.problems(queue.map(|queue| &queue.broker), catalog) {
            self.problem(problem.within("amqp"));
        }
        Some(amqp)
    }

    fn stores(&mut self) -> BTreeMap<String, StoreConfig> {
        let stores: BTreeMap<String, StoreConfig> = self.named("stores");
        for (name, config) in &stores {
            if let Some(problem) = config.keep.as_ref().and_then(Keep::problem) {
                self.problem(Problem::new(problem).within("keep").within(name).within("stores"));
            }
        }
        stores
    }

    fn credentials(&mut self) -> BTreeMap<String, CredentialsConfig> {
        let credentials: BTreeMap<String, CredentialsConfig> = self.named("credentials");
        for (name, config) in &credentials {
            for problem in config.problems() {
                self.problem(problem.within(name).within("credentials"));
            }
        }
        credentials
    }

    fn programs(&mut self) -> BTreeMap<String, ProgramConfig> {
        let programs: BTreeMap<String, ProgramConfig> = self.named("programs");
        for (name, config) in &programs {
            for problem in config.problems() {
                self.problem(problem.within(name).within("programs"));
            }
        }
        programs
    }

    fn rotations(&mut self) -> BTreeMap<String, RotationConfig> {
        let rotations: BTreeMap<String, RotationConfig> = self.named("rotations");
        let names = self.names();
        for (name, config) in &rotations {
            for problem in config.problems(&names) {
                self.problem(problem.within(name).within("rotations"));
            }
        }
        rotations::problems(&rotations).into_iter().for_each(|problem| self.problem(problem));
        rotations
    }

    fn vault(&mut self) -> Option<VaultSection> {
        let vault: VaultSection = self.part(&["vault"])?;
        for problem in vault.problems() {
            self.problem(problem.within("vault"));
        }
        Some(vault)
    }

    fn github(&mut self) -> Option<GithubConnection> {
        let section: GithubSection = self.part(&["connections", "github"])?;
        Some(GithubConnection { token: section.token, api_url: section.api_url })
    }

    fn vercel(&mut self) -> Option<VercelConnection> {
        let section: VercelSection = self.part(&["connections", "vercel"])?;
        let team = section.team.map(|team| team.0);
        Some(VercelConnection { token: section.token, team, api_url: section.api_url })
    }

    fn runbooks(&mut self, catalog: &schemas::Catalog) -> BTreeMap<String, Runbook> {
        let configs: BTreeMap<String, RunbookConfig> = self.named("runbooks");
        let mut runbooks = BTreeMap::new();
        for (name, config) in configs {
            if catalog.kind(&name).is_ok() {
                let problem = Problem::new("a runbook can't have the name of a job kind: `run` would not know which");
                self.problem(problem.within(&name).within("runbooks"));
            }
            match Runbook::build(&name, &config, catalog) {
                Ok(runbook) => {
                    runbooks.insert(name, runbook);
                }
                Err(problems) => {
                    for problem in problems {
                        self.problem(problem.within(&name).within("runbooks"));
                    }
                }
            }
        }
        runbooks
    }

    /// The sources that are right; each is built by itself, so that a wrong one hides nothing.
    fn sources(&mut self) -> Sources {
        let mut right = BTreeMap::new();
        for (name, config) in self.named::<SourceConfig>("sources") {
            match Sources::build(&[(name.clone(), config.clone())].into()) {
                Ok(_) => drop(right.insert(name, config)),
                Err(problems) => problems.into_iter().for_each(|problem| self.problem(problem)),
            }
        }
        Sources::build(&right).unwrap_or_default()
    }

    /// The routes that are right; each is built by itself, so that it keeps its place in the file.
    fn routes(&mut self, startable: &Startable, sources: &Sources) -> Routes {
        let mut right = Vec::new();
        for index in 0..self.document.length(&["routes"]) {
            let index = index.to_string();
            let Some(config) = self.part::<RouteConfig>(&["routes", &index]) else { continue };
            match Routes::build(std::slice::from_ref(&config), startable, sources) {
                Ok(_) => right.push(config),
                Err(problems) => {
                    for mut problem in problems {
                        problem.path[1].clone_from(&index);
                        if !self.follows_from_another(&problem, &config, startable, sources) {
                            self.problem(problem);
                        }
                    }
                }
            }
        }
        Routes::build(&right, startable, sources).unwrap_or_default()
    }

    /// The schedules that are right.
    fn schedules(&mut self, startable: &Startable) -> Vec<Schedule> {
        let mut right = Vec::new();
        for (name, config) in self.named::<ScheduleConfig>("schedules") {
            match config.build(&name, startable) {
                Ok(schedule) => right.push(schedule),
                Err(problems) => {
                    for problem in problems {
                        let of_run = problem.path.first().is_some_and(|key| key == "run");
                        if !(of_run && self.names_a_wrong_runbook(&config.run, startable)) {
                            self.problem(problem.within(&name).within("schedules"));
                        }
                    }
                }
            }
        }
        right
    }

    /// Whether the runbook that is to be run is there, and wrong itself.
    fn names_a_wrong_runbook(&self, run: &RunConfig, startable: &Startable) -> bool {
        let there = self.document.names(&["runbooks"]);
        run.runbook.as_ref().is_some_and(|name| there.contains(name) && !startable.runbooks.contains_key(name))
    }

    /// Whether a route is only wrong because the runbook or source that it names is there, and wrong itself.
    fn follows_from_another(
        &self,
        problem: &Problem,
        config: &RouteConfig,
        startable: &Startable,
        sources: &Sources,
    ) -> bool {
        let place = problem.path.get(2).map(String::as_str);
        let wrong_runbook = self.names_a_wrong_runbook(&config.run, startable);
        let wrong_source = self.document.names(&["sources"]).len() > sources.iter().count();
        (place == Some("run") && wrong_runbook) || (place == Some("on") && wrong_source)
    }

    fn unknown_names(&mut self, table: &[&str], known: &[&str]) {
        for name in self.document.names(table) {
            if !known.contains(&name.as_str()) {
                let mut path: Vec<String> = table.iter().map(|step| (*step).to_owned()).collect();
                path.push(name.clone());
                let steps: Vec<&str> = path.iter().map(String::as_str).collect();
                let place = self.document.key_place(&steps);
                let problem = Problem::unknown("key", &name, known.iter().copied());
                self.findings.push(Finding { path, ..problem.into() }.at(place));
            }
        }
    }

    fn check_queue(&mut self, queue: Option<&QueueSection>) {
        let Some(queue) = queue else { return };
        let ledger =
            queue.ledger.scheme().map(|scheme| (scheme, Problem::unknown("ledger", scheme, ["sqlite", "postgres"])));
        if let Some((scheme, problem)) = ledger
            && !matches!(scheme, "sqlite" | "postgres" | "postgresql")
        {
            self.problem(problem.help("write `sqlite:<path>` or `postgres://...`").within("ledger").within("queue"));
        }
        let broker =
            queue.broker.scheme().map(|scheme| (scheme, Problem::unknown("broker", scheme, ["in-process", "amqp"])));
        if let Some((scheme, problem)) = broker
            && !matches!(scheme, "in-process" | "amqp" | "amqps")
        {
            self.problem(problem.help("write `in-process` or `amqp://...`").within("broker").within("queue"));
        }
        if queue.ledger.scheme() == Some("sqlite") && matches!(queue.broker.scheme(), Some("amqp" | "amqps")) {
            let problem = Problem::new("a SQLite ledger is one process's: a broker has nobody to tell")
                .help("leave `broker` out, or take `postgres://...` as the ledger");
            self.problem(problem.within("broker").within("queue"));
        }
        let token = self.document.part(&["operators", "token"]).is_some();
        if matches!(queue.ledger.scheme(), Some("postgres" | "postgresql")) && !token {
            let problem = Problem::new("`token` is missing: several processes need the same one")
                .help("write `token = \"${env:NIGHTPORTER_TOKEN}\"` under [operators]");
            self.problem(problem.within("operators"));
        }
    }

    fn check_copies(&mut self, queue: Option<&QueueSection>) {
        let Some(queue) = queue else { return };
        if !COPY_EVERY.contains(&queue.copy_every.0) {
            let problem =
                Problem::new("the ledger is copied every 1s to 1h").help("30s is what it is without this line");
            self.problem(problem.within("copy_every").within("queue"));
        }
        let Some(name) = &queue.copy_to else { return };
        let stores = self.document.names(&["stores"]);
        if !stores.contains(name) {
            let problem = Problem::unknown("store", name, stores.iter().map(String::as_str));
            self.problem(problem.within("copy_to").within("queue"));
        }
        if matches!(queue.ledger.scheme(), Some("postgres" | "postgresql")) {
            let problem = Problem::new("only a SQLite ledger is copied; PostgreSQL is copied by its own means")
                .help("leave `copy_to` out, and see docs/recover.md");
            self.problem(problem.within("copy_to").within("queue"));
        }
    }

    fn check_defaults(&mut self, defaults: Option<&DefaultsSection>) {
        let channels = self.document.names(&["channels"]);
        if let Some(name) = defaults.and_then(|defaults| defaults.on_failure.as_ref())
            && !channels.contains(name)
        {
            let problem = Problem::unknown("channel", name, channels.iter().map(String::as_str));
            self.problem(problem.within("on_failure").within("defaults"));
        }
    }

    fn check_worker(&mut self, worker: Option<&WorkerSection>, registry: &worker::Registry) {
        if worker.is_some_and(|worker| worker.lease.0 < SHORTEST_LEASE) {
            let problem = Problem::new("a lease of less than 3s would be lost by workers that are only busy");
            self.problem(problem.within("lease").within("worker"));
        }
        let known = registry.queues();
        let permits = |name: &str| worker.and_then(|worker| worker.queues.get(name));
        for name in self.document.names(&["worker", "queues"]) {
            let problem = if !known.contains_key(name.as_str()) {
                Problem::unknown("queue", &name, known.keys().copied())
            } else if permits(&name) == Some(&0) {
                Problem::new("a queue needs at least one permit")
            } else {
                continue;
            };
            self.problem(problem.within(name).within("queues").within("worker"));
        }
    }

    /// What a rotation of a source's secret changes must be what the source accepts.
    fn check_webhooks(&mut self, rotations: &BTreeMap<String, RotationConfig>, sources: &Sources) {
        let known = self.document.names(&["sources"]);
        for (name, rotation) in rotations {
            let Some(webhook) = &rotation.webhook else { continue };
            let problem = match sources.get(&webhook.source) {
                None if known.contains(&webhook.source) => continue, // What is wrong with it is said there.
                None => Problem::unknown("source", &webhook.source, known.iter().map(String::as_str)),
                Some(source) => {
                    let reference = webhook.reference(&rotation.secret);
                    if source.secrets().iter().any(|secret| SecretText::parse(&reference).as_ref() == Ok(secret)) {
                        continue;
                    }
                    Problem::new("the source does not accept this secret")
                        .help(format!("write \"{reference}\" into `secrets` of [sources.{}]", webhook.source))
                }
            };
            self.problem(problem.within("source").within("webhook").within(name).within("rotations"));
        }
    }

    /// Rotations that reach a service need its connection.
    fn check_connections(&mut self, rotations: &BTreeMap<String, RotationConfig>) {
        for (name, rotation) in rotations {
            for (service, place) in rotation.connections() {
                if self.document.part(&["connections", service]).is_none() {
                    let help = format!("add [connections.{service}] with a token");
                    let problem = Problem::new("this needs a connection that is not configured").help(help);
                    let problem = place.into_iter().rev().fold(problem, schemas::Problem::within);
                    self.problem(problem.within(name).within("rotations"));
                }
            }
        }
    }

    /// References to a vault and rotations need one.
    fn check_vault(&mut self) {
        if self.document.part(&["vault"]).is_some() {
            return;
        }
        let help = "add [vault] with `url = \"aws-secrets-manager:?region=...\"` or `url = \"file:<path>\"`";
        for path in self.document.texts_with("${vault:") {
            let problem = Problem::new("this asks the vault, and none is configured").help(help);
            self.problem(Problem { path, ..problem });
        }
        for name in self.document.names(&["rotations"]) {
            let problem = Problem::new("this rotates a secret in the vault, and none is configured").help(help);
            self.problem(problem.within(name).within("rotations"));
        }
    }

    fn problem(&mut self, problem: Problem) {
        let place = self.document.place(&problem.path);
        let finding = match problem {
            // A job's arguments are read by serde too.
            Problem { path, message, help: None } => Finding { path, ..from_serde(&message) },
            problem => problem.into(),
        };
        self.findings.push(finding.at(place));
    }
}
