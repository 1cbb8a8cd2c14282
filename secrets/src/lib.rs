//! Secrets: references to them in the configuration, and the vaults that hold them.
//!
//! A secret's value is resolved at each use, through a short cache, so that a rotated one is taken up without a restart;
//! it is never written anywhere.

mod active;
mod reference;
mod resolver;
pub mod vaults;

pub use active::{Active, ActiveVersion, SEEN_WITHIN};
pub use reference::{ReferenceError, SecretText};
pub use resolver::{ResolveError, Resolver, field};
pub use secrecy::{ExposeSecret, SecretString};
