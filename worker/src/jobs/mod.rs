//! The job kinds. A new one is a file here, and a line in [`registry`].

mod backup;
mod noop;
pub(crate) mod notify;
mod restore;

use crate::registry::Registry;

/// All job kinds: the only list of them.
pub fn registry() -> Registry {
    Registry::default()
        .with::<noop::Noop>()
        .with::<notify::Notify>()
        .with::<backup::Backup>()
        .with::<restore::Restore>()
}
