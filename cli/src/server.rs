//! A running process: its listeners, its roles, and their end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use console::{Console, Released};
use producer::{Door, Matched, Scheduler, Startable, settle_that_nothing_is_announced};
use queue::broker::programs::Programs;
use queue::{NoticeOfSilence, Queue};
use schemas::{Problem, Schedule};
use secrets::Resolver;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{info, warn};
use url::Url;
use worker::heartbeat::Heartbeat;
use worker::ledger_copies::{Copier, CopyMetrics};
use worker::{Worker, WorkerConfig, World};

use crate::commands::recover;
use crate::config::{Checked, Config, Finding, LogFormat, TelemetrySection};
use crate::descriptors::Connections;
use crate::exit_code;
use crate::failure::Failure;
use crate::health::Health;
use crate::listener::Listener;
use crate::metrics::{Metrics, Parts};
use crate::rooms;
use crate::talk::Talk;
use crate::telemetry::{self, TelemetrySettings};

/// How often it is looked whether promoter and rescuer still live.
const LOOK: Duration = Duration::from_secs(1);

/// What is to be rung is rung within this at the end; what is not is found by polling.
const LAST_BELLS: Duration = Duration::from_secs(5);

/// What is still to be traced is sent within this at the end.
const LAST_TRACES: Duration = Duration::from_secs(5);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roles {
    /// Takes deliveries in, and serves the API.
    serves: bool,
    /// Runs jobs.
    works: bool,
}

impl Roles {
    /// Everything.
    pub(crate) const UP: Self = Self { serves: true, works: true };
    /// Producer and console.
    pub(crate) const SERVE: Self = Self { serves: true, works: false };
    /// Worker.
    pub(crate) const WORK: Self = Self { serves: false, works: true };
}

/// What the ready file says.
#[derive(Serialize)]
struct Ready {
    /// The public door, where the process has one.
    server: Option<SocketAddr>,
    /// Under which address senders reach it, where that is configured.
    public_url: Option<Url>,
    /// The operators' address, or a worker's own for its health; none where it has none.
    operators: Option<SocketAddr>,
}

/// Runs the roles until the process is told to stop.
pub(crate) async fn run(config: &Path, roles: Roles, ready_file: Option<PathBuf>) -> Result<(), Failure> {
    let checked = Checked::file(config)?;
    let warnings = checked.lines(|finding| !Finding::is_error(finding));
    let config = checked.config()?;
    let TelemetrySection { otlp, log, level } = config.telemetry.clone();
    let telemetry = telemetry::start(&TelemetrySettings { otlp, json: log == LogFormat::Json, level })?;
    warnings.lines().for_each(|line| warn!("{line}"));
    let ended = Box::pin(run_roles(config, roles, ready_file)).await;
    telemetry.shutdown(LAST_TRACES).await;
    ended
}

async fn run_roles(mut config: Config, roles: Roles, ready_file: Option<PathBuf>) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    // Bound first: an address that is taken is said before anything is opened.
    let Connections { senders, operators } = Connections::allowed();
    let front = if roles.serves { Some(Listener::bind(config.server.listen, "server", senders).await?) } else { None };
    let house = match (roles.serves, config.worker.listen) {
        (true, _) => Some(Listener::bind(config.operators.listen, "operators", operators).await?),
        (false, Some(listen)) => Some(Listener::bind(listen, "worker", operators).await?),
        (false, None) => None,
    };
    let ready = Ready {
        server: front.as_ref().map(Listener::address),
        public_url: config.server.public_url.clone(),
        operators: house.as_ref().map(Listener::address),
    };
    let resolver = rooms::resolver(&config).await;
    Box::pin(recover::must_not_begin_anew(&config, &resolver)).await?;
    let (queue, ledger) = rooms::open_queue(&config, &resolver, roles).await?;
    let mut running = Running::new(queue.clone(), stop);
    let copies = config.queue.copy_to.is_some().then(CopyMetrics::default);
    if let Some(metrics) = &copies {
        running.copy(rooms::copier(&config, queue.clone(), Arc::clone(&resolver), metrics.clone()));
    }
    let counted = worker::Metrics::default();
    let door = rooms::door(&mut config, queue.clone(), Arc::clone(&resolver), roles.serves)?;
    let world = roles.works.then(|| running.work(&config, &resolver, counted.clone(), door.clone()));
    let parts = Parts { worker: roles.works.then_some(&counted), copies: copies.as_ref(), ..Parts::default() }
        .with_stores(&config, world);
    let catalog = Arc::clone(&config.startable.catalog);
    if let Some(heartbeat) = config.heartbeat.clone() {
        let heartbeat = Heartbeat::new(heartbeat, queue.clone(), Arc::clone(&resolver), worker::world::http_client());
        running.parts.spawn(heartbeat.run(running.stop.clone()));
    }
    match (front, house) {
        (Some(front), Some(house)) => {
            let token = rooms::token(&config, &resolver, &ledger).await?;
            rooms::warn_of_missing_secrets(&config.sources, &resolver).await;
            let startable = config.startable.clone();
            let (schedules, digest) = (config.schedules.clone(), config.digest.clone());
            let clockwork = rooms::scheduler(&config, queue.clone());
            let talk = Talk::open(&config, &resolver, &queue).await?;
            let talk = talk.map(|talk| talk.with_announcer(&door, &queue, &digest));
            let health = Health::new(queue.clone(), Some(door.clone()), talk.as_ref());
            let parts = Parts { door: Some(&door), scheduler: Some(&clockwork), talk: talk.as_ref(), ..parts };
            let metrics = Metrics::new(queue.clone(), parts, &catalog);
            running.schedule(clockwork);
            running.talk(talk, digest);
            let api = console::router(console(queue, startable, schedules, token, &door));
            running.listen(house, health.clone().with_reasons().merge(metrics.router()).merge(api));
            running.listen(front, health.public().merge(door.router()));
            running.listen_for_silence(door.clone(), rooms::silence(&config));
            running.drain(door);
        }
        (_, Some(house)) => {
            let metrics = Metrics::new(queue.clone(), parts, &catalog);
            running.listen(house, Health::new(queue, None, None).with_reasons().merge(metrics.router()));
        }
        (_, None) => {}
    }
    announce(&ready, ready_file.as_deref())?;
    running.until_stopped().await
}

fn console(queue: Queue, startable: Startable, schedules: Vec<Schedule>, token: Arc<str>, door: &Door) -> Console {
    let door = door.clone();
    let Startable { catalog, runbooks } = startable;
    let released: Released = Arc::new(move |view, body| {
        let Matched { jobs, runs, errors } = door.work_of(&view.event, body, &queue::trace::current());
        // Released without it, the work of the route that errs would be lost silently.
        if errors.is_empty() { Ok((jobs, runs)) } else { Err(Problem::new(errors.join("; "))) }
    });
    let schedules = schedules.into_iter().map(|schedule| (schedule.name.clone(), schedule)).collect();
    Console { queue, catalog, runbooks, schedules: Arc::new(schedules), token, released }
}

/// What was started, in the order in which it ends.
struct Running {
    queue: Queue,
    stop: CancellationToken,
    /// Promoter and rescuer go on until the last attempt has ended.
    upkeep_stop: CancellationToken,
    upkeep: JoinHandle<()>,
    /// Copies once more when all else has ended.
    copier: Option<JoinHandle<()>>,
    copier_stop: CancellationToken,
    parts: JoinSet<()>,
    /// Closed when nobody uses it any more.
    programs: Option<Arc<dyn Programs>>,
}

impl Running {
    fn new(queue: Queue, stop: CancellationToken) -> Self {
        let upkeep_stop = CancellationToken::new();
        let upkeep = tokio::spawn({
            let (queue, stop) = (queue.clone(), upkeep_stop.clone());
            async move { queue.keep_up(stop).await }
        });
        let copier_stop = CancellationToken::new();
        let parts = JoinSet::new();
        Self { queue, stop, upkeep_stop, upkeep, copier: None, copier_stop, parts, programs: None }
    }

    fn copy(&mut self, copier: Option<Copier>) {
        let stop = self.copier_stop.clone();
        self.copier = copier.map(|copier| tokio::spawn(copier.run(stop)));
    }

    fn listen(&mut self, listener: Listener, router: Router) {
        let router = router.layer(CatchPanicLayer::new());
        self.parts.spawn(listener.serve(router, self.stop.clone()));
    }

    fn drain(&mut self, door: Door) {
        let stop = self.stop.clone();
        self.parts.spawn(async move { door.drain(stop).await });
    }

    fn listen_for_silence(&mut self, door: Door, notice: Option<NoticeOfSilence>) {
        self.parts.spawn(door.listen(notice, self.stop.clone()));
    }

    fn schedule(&mut self, scheduler: Scheduler) {
        self.parts.spawn(scheduler.run(self.stop.clone()));
    }

    /// What other programs ask for is done, and what happens is announced to them, or settled that it is not.
    fn talk(&mut self, talk: Option<Talk>, config_digest: String) {
        let Some(Talk { programs, intake, announcer, .. }) = talk else {
            return self.settle_that_nothing_is_announced(config_digest);
        };
        if let Some(intake) = intake {
            self.parts.spawn(intake.run(self.stop.clone()));
        }
        match announcer {
            Some(announcer) => drop(self.parts.spawn(announcer.run(self.stop.clone()))),
            None => self.settle_that_nothing_is_announced(config_digest),
        }
        self.programs = Some(programs);
    }

    fn settle_that_nothing_is_announced(&mut self, config_digest: String) {
        let settled = settle_that_nothing_is_announced(self.queue.clone(), config_digest, self.stop.clone());
        self.parts.spawn(settled);
    }

    /// Runs jobs; the world that they run in.
    fn work(&mut self, config: &Config, resolver: &Arc<Resolver>, metrics: worker::Metrics, door: Door) -> Arc<World> {
        let world = World::new(config.world.clone(), Arc::clone(resolver), worker::world::http_client());
        let world = Arc::new(world.with_inlet(Arc::new(rooms::WayIn(door))));
        let registry = Arc::new(worker::jobs::registry());
        let how = WorkerConfig {
            permits: config.worker.queues.clone(),
            grace: config.worker.grace.0,
            lease: config.worker.lease.0,
            notice: rooms::notice(config),
            metrics,
            resolution: rooms::resolution(config),
            ..WorkerConfig::default()
        };
        let worker = Worker::new(self.queue.clone(), registry, Arc::clone(&world), how);
        self.parts.spawn(worker.run(self.stop.clone()));
        world
    }

    /// Waits for the word to stop; then stops accepting, lets the work end, and closes the queue. A part that ends
    /// before the word takes the others with it: half a process looks alive.
    async fn until_stopped(mut self) -> Result<(), Failure> {
        let mut panicked = tokio::select! {
            // The word to stop ends parts too: it is looked at first.
            biased;
            () = self.stop.cancelled() => false,
            _ = self.parts.join_next() => true,
            () = ended(&self.upkeep) => true,
            () = ended_if_any(self.copier.as_ref()) => true,
        };
        info!("stopping; a second signal ends at once");
        self.stop.cancel();
        while let Some(part) = self.parts.join_next().await {
            panicked |= part.is_err();
        }
        self.upkeep_stop.cancel();
        panicked |= self.upkeep.await.is_err();
        self.copier_stop.cancel();
        if let Some(copier) = self.copier {
            panicked |= copier.await.is_err();
        }
        if let Some(programs) = self.programs {
            programs.close().await;
        }
        self.queue.close(LAST_BELLS).await;
        info!("stopped");
        if panicked {
            return Err(Failure::failed("a part of the process ended by itself; the log says why"));
        }
        Ok(())
    }
}

/// Waits until a task has ended, and leaves what it answered to whoever asks for it.
async fn ended(task: &JoinHandle<()>) {
    while !task.is_finished() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn ended_if_any(task: Option<&JoinHandle<()>>) {
    match task {
        Some(task) => ended(task).await,
        None => std::future::pending().await,
    }
}

/// Says where the process listens and what to try next.
fn announce(ready: &Ready, file: Option<&Path>) -> Result<(), Failure> {
    match (ready.server, ready.operators) {
        (Some(server), Some(house)) => {
            let outside = ready.public_url.as_ref().map_or_else(|| format!("http://{server}"), Url::to_string);
            let outside = outside.trim_end_matches('/');
            info!(%server, operators = %house, "listening: webhooks at {outside}/webhooks/<source>, API at http://{house}/api/v1");
            info!("try `nightporter trigger <source> <type>`, then `nightporter events list`");
        }
        (_, Some(house)) => info!("working; health at http://{house}/readyz"),
        (_, None) => info!("working"),
    }
    let Some(path) = file else { return Ok(()) };
    let text = crate::output::json(ready)?;
    // Written aside and renamed: whoever waits for the file finds it whole.
    let aside = path.with_extension("partial");
    std::fs::write(&aside, text)
        .and_then(|()| std::fs::rename(&aside, path))
        .map_err(|error| Failure::failed(format!("cannot write the ready file {}: {error}", path.display())))
}

/// Cancelled by the first SIGTERM or SIGINT; the second one ends the process at once.
fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                told.cancel();
            } else {
                std::process::exit(exit_code::FAILED.into());
            }
        }
    });
    Ok(stop)
}
