//! Identifiers: UUID version 7, so that rows written together lie together in an index.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identifier whose leading bits are the given time.
            pub fn at(now: Timestamp) -> Self {
                Self(uuid_at(now))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }
    };
}

id! {
    /// Names one event.
    EventId
}
id! {
    /// Names one job, through all its attempts.
    JobId
}
id! {
    /// Names one execution of a runbook.
    RunId
}
id! {
    /// Names one worker process from its start to its end. Random for each start: host names and process ids come back,
    /// and then an orphan looks alive.
    WorkerId
}

/// The least identifier of a time: all that were made before are less, and none that is made later is.
pub fn least_id_of(time: Timestamp) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn uuid_at(now: Timestamp) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, now.timestamp_subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_id_of_a_time_divides_those_made_before_from_those_made_since() {
        let time = Timestamp::from_timestamp_millis(1_790_000_000_123).unwrap();
        let millisecond = chrono::TimeDelta::milliseconds(1);
        for _ in 0..100 {
            assert!(JobId::at(time - millisecond).0 < least_id_of(time));
            assert!(JobId::at(time).0 >= least_id_of(time));
        }
    }
}
