//! The job kinds. A new one is a file here, and a line in [`registry`].

mod backup;
mod migrate;
mod noop;
pub(crate) mod notify;
mod plan;
mod restore;
mod retention;
mod verify;

use crate::registry::Registry;

/// All job kinds: the only list of them.
pub fn registry() -> Registry {
    Registry::default()
        .with::<backup::Backup>()
        .with::<migrate::Migrate>()
        .with::<noop::Noop>()
        .with::<notify::Notify>()
        .with::<plan::Plan>()
        .with::<restore::Restore>()
        .with::<retention::Retention>()
        .with::<verify::Verify>()
}
