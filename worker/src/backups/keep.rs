//! Which backups are kept: by tiers, by what is known of them, and none deleted while anything is in doubt. Pure.
//!
//! In each tier the newest good backup of each hour, six hours, day, ... stands for it, until it is older than the tier
//! keeps. So what is deleted is never wanted later, and a run that was killed half-way is finished by the next one.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, Duration};
use schemas::Timestamp;
use serde::{Deserialize, Deserializer};

use super::{Backup, Listing, Marks};

/// A backup is missing when the newest is older than twice the smallest tier's unit, and than this.
const PATIENCE: Duration = Duration::hours(48);
/// What `at_least_verified` is where nothing is said.
const AT_LEAST_VERIFIED: usize = 3;
/// The tier of backups that are made before a migration, as manifests name it.
pub(crate) const BEFORE_MIGRATION: &str = "before_migration";

/// `[stores.NAME.keep]`: for how long one backup of each hour, six hours, day, ... is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Keep {
    #[serde(default, deserialize_with = "age")]
    pub hourly: Option<Duration>,
    #[serde(default, deserialize_with = "age")]
    pub six_hourly: Option<Duration>,
    #[serde(default, deserialize_with = "age")]
    pub daily: Option<Duration>,
    #[serde(default, deserialize_with = "age")]
    pub weekly: Option<Duration>,
    #[serde(default, deserialize_with = "age")]
    pub monthly: Option<Duration>,
    #[serde(default, deserialize_with = "age")]
    pub yearly: Option<Duration>,
    /// All backups of this tier. Where nothing is said, they are in the other tiers.
    #[serde(default, deserialize_with = "age")]
    pub before_migration: Option<Duration>,
    /// So many are kept whatever their age: first those that were proven by a restore, then the newest.
    pub at_least_verified: Option<usize>,
}

/// One tier: its name, how long it keeps, and its unit: which one a moment is in, and about how long it is.
struct Tier {
    name: &'static str,
    keeps: Duration,
    unit: fn(Timestamp) -> i64,
    length: Duration,
}

impl Keep {
    fn tiers(&self) -> Vec<Tier> {
        let hours: fn(Timestamp) -> i64 = |at| at.timestamp().div_euclid(3600);
        let six_hours: fn(Timestamp) -> i64 = |at| at.timestamp().div_euclid(6 * 3600);
        let days: fn(Timestamp) -> i64 = |at| at.timestamp().div_euclid(86_400);
        // The first of January 1970 was a Thursday; weeks begin on Mondays.
        let weeks: fn(Timestamp) -> i64 = |at| (at.timestamp().div_euclid(86_400) + 3).div_euclid(7);
        let months: fn(Timestamp) -> i64 = |at| i64::from(at.year()) * 12 + i64::from(at.month0());
        let years: fn(Timestamp) -> i64 = |at| i64::from(at.year());
        let tier = |name, keeps: Option<Duration>, unit, length| Some(Tier { name, keeps: keeps?, unit, length });
        let all = [
            tier("hourly", self.hourly, hours, Duration::hours(1)),
            tier("six_hourly", self.six_hourly, six_hours, Duration::hours(6)),
            tier("daily", self.daily, days, Duration::days(1)),
            tier("weekly", self.weekly, weeks, Duration::days(7)),
            tier("monthly", self.monthly, months, Duration::days(31)),
            tier("yearly", self.yearly, years, Duration::days(366)),
        ];
        all.into_iter().flatten().collect()
    }

    /// Why nothing can be kept by this; none where something can.
    pub fn problem(&self) -> Option<&'static str> {
        let without = self.tiers().is_empty();
        without.then_some("it names no tier, such as `daily = \"30d\"`: all but the last backups would be deleted")
    }

    /// After this long without a new backup, none is deleted any more.
    fn patience(&self) -> Duration {
        let smallest = self.tiers().iter().map(|tier| tier.length).min().unwrap_or(PATIENCE);
        (smallest * 2).max(PATIENCE)
    }

    fn at_least(&self) -> usize {
        self.at_least_verified.unwrap_or(AT_LEAST_VERIFIED)
    }
}

/// A backup as far as this is about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Known {
    pub key: String,
    pub started_at: Timestamp,
    pub before_migration: bool,
    pub marks: Marks,
}

impl Known {
    pub(crate) fn of(backup: &Backup, listing: &Listing) -> Self {
        Self {
            key: backup.key.clone(),
            started_at: backup.manifest.started_at,
            before_migration: backup.manifest.tier.as_deref() == Some(BEFORE_MIGRATION),
            marks: listing.marks(&backup.key),
        }
    }
}

/// What becomes of the backups of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Why none is deleted, although some would be.
    pub held: Option<String>,
    /// Those that are kept, with all the reasons for it.
    pub kept: BTreeMap<String, Vec<String>>,
    /// Those that are deleted, the oldest first.
    pub deleted: Vec<String>,
}

/// Decides about the backups of one database. `broken` are the keys of its manifests that cannot be used, which are not
/// touched; `failed` is why its last backup failed, if it did.
pub fn decide(keep: &Keep, backups: &[Known], broken: &[String], failed: Option<&str>, now: Timestamp) -> Decision {
    let mut all: Vec<&Known> = backups.iter().collect();
    all.sort_by_key(|backup| (backup.started_at, &backup.key));
    let mut decision = Decision { held: doubt(keep, &all, broken, failed, now), ..Decision::default() };
    for (key, reason) in reasons(keep, &all, now) {
        decision.kept.entry(key.clone()).or_default().push(reason);
    }
    for backup in all.iter().filter(|backup| !decision.kept.contains_key(&backup.key)).collect::<Vec<_>>() {
        match &decision.held {
            Some(_) => drop(decision.kept.insert(backup.key.clone(), vec!["held".to_owned()])),
            None => decision.deleted.push(backup.key.clone()),
        }
    }
    decision
}

/// Why nothing may be deleted now.
fn doubt(keep: &Keep, all: &[&Known], broken: &[String], failed: Option<&str>, now: Timestamp) -> Option<String> {
    if let Some(why) = failed {
        return Some(format!("its last backup failed: {why}"));
    }
    let Some(newest) = all.iter().rev().find(|backup| !backup.marks.disproved()) else {
        return (!all.is_empty()).then(|| "it has no good backup".to_owned());
    };
    if let Some(key) = broken.iter().find(|key| **key > newest.key) {
        return Some(format!("a newer backup cannot be used: {key}"));
    }
    let patience = keep.patience();
    let missing = now - newest.started_at > patience;
    missing.then(|| format!("its newest good backup is older than {} hours: {}", patience.num_hours(), newest.key))
}

/// Each reason to keep one.
fn reasons<'a>(keep: &Keep, all: &[&'a Known], now: Timestamp) -> Vec<(&'a String, String)> {
    let mut reasons = Vec::new();
    let good: Vec<&Known> = all.iter().copied().filter(|backup| !backup.marks.disproved()).collect();
    for backup in all {
        if backup.marks.pinned {
            reasons.push((&backup.key, "pinned".to_owned()));
        }
        if backup.marks.disproved() {
            reasons.push((&backup.key, "found wrong: a person must look at it".to_owned()));
        }
        if backup.started_at > now {
            reasons.push((&backup.key, "dated in the future".to_owned()));
        }
        let fresh = keep.before_migration.is_some_and(|keeps| now - backup.started_at < keeps);
        if backup.before_migration && fresh {
            reasons.push((&backup.key, BEFORE_MIGRATION.to_owned()));
        }
    }
    reasons.extend(good.last().map(|last| (&last.key, "the last good one".to_owned())));
    let proven = good.iter().rev().filter(|backup| backup.marks.proven_at().is_some());
    let others = good.iter().rev().filter(|backup| backup.marks.proven_at().is_none());
    let always = proven.chain(others).take(keep.at_least());
    reasons.extend(always.map(|backup| (&backup.key, format!("one of {} that are always kept", keep.at_least()))));
    let own_tier = |backup: &Known| backup.before_migration && keep.before_migration.is_some();
    for tier in keep.tiers() {
        let mut seen = BTreeSet::new();
        for backup in good.iter().rev().filter(|backup| !own_tier(backup)) {
            let stands_for_it = seen.insert((tier.unit)(backup.started_at));
            if stands_for_it && now - backup.started_at < tier.keeps {
                reasons.push((&backup.key, tier.name.to_owned()));
            }
        }
    }
    reasons
}

/// Reads a whole number and `h`, `d`, `w` or `y`. No minutes: nobody keeps a backup for so short a time, but `30m` is
/// written quickly for thirty months.
fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong =
        || serde::de::Error::custom(format!("`{text}` is no age: write a whole number and h, d, w or y, such as 30d"));
    let unit = text.chars().last().ok_or_else(wrong)?;
    let count = &text[..text.len() - unit.len_utf8()];
    let digits = count.bytes().all(|byte| byte.is_ascii_digit());
    let count: i64 = count.parse().ok().filter(|count| digits && (1..=100_000).contains(count)).ok_or_else(wrong)?;
    match unit {
        'h' => Ok(Some(Duration::hours(count))),
        'd' => Ok(Some(Duration::days(count))),
        'w' => Ok(Some(Duration::weeks(count))),
        'y' if count <= 100 => Ok(Some(Duration::days(count * 366))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
