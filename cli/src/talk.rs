//! What is heard from other programs and said to them, where that is configured.

use std::sync::Arc;

use producer::{Announcer, AnnouncerConfig, Door, Intake, IntakeConfig};
use prometheus_client::registry::Registry;
use queue::Queue;
use queue::broker::programs::{self, Programs};
use secrets::{ExposeSecret, Resolver};

use crate::config::Config;
use crate::failure::Failure;
use crate::rooms;

/// The way to other programs, and who uses it.
#[derive(Clone)]
pub(crate) struct Talk {
    pub(crate) programs: Arc<dyn Programs>,
    pub(crate) intake: Option<Intake>,
    announcements: Option<(String, bool, bool)>,
    pub(crate) announcer: Option<Announcer>,
}

impl Talk {
    /// Opens the way, which need not be there yet, and prepares whoever takes jobs in.
    pub(crate) async fn open(config: &Config, resolver: &Resolver, queue: &Queue) -> Result<Option<Self>, Failure> {
        let Some(amqp) = config.amqp.clone() else { return Ok(None) };
        let programs = programs::connect(rooms::amqp_address(config, resolver).await?.expose_secret())?;
        let intake = amqp.jobs.map(|jobs| {
            Intake::new(IntakeConfig {
                queue: queue.clone(),
                programs: Arc::clone(&programs),
                inbox: jobs.queue,
                kinds: jobs.kinds,
                catalog: Arc::clone(&config.startable.catalog),
                config_digest: config.digest.clone(),
            })
        });
        let announcements = amqp.announcements.map(|said| (said.exchange().to_owned(), said.bodies, said.outputs));
        Ok(Some(Self { programs, intake, announcements, announcer: None }))
    }

    /// Prepares whoever announces; the door reads bodies.
    pub(crate) fn with_announcer(mut self, door: &Door, queue: &Queue, config_digest: &str) -> Self {
        self.announcer = self.announcements.take().map(|(exchange, bodies, outputs)| {
            Announcer::new(AnnouncerConfig {
                queue: queue.clone(),
                programs: Arc::clone(&self.programs),
                exchange,
                bodies,
                outputs,
                door: door.clone(),
                config_digest: config_digest.to_owned(),
            })
        });
        self
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        if let Some(intake) = &self.intake {
            intake.register_metrics(registry);
        }
        if let Some(announcer) = &self.announcer {
            announcer.register_metrics(registry);
        }
    }
}
