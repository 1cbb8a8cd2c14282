use proptest::prelude::*;

use super::super::marks::Verdict;
use super::*;

fn keep() -> Keep {
    Keep {
        six_hourly: Some(Duration::days(2)),
        daily: Some(Duration::days(7)),
        weekly: Some(Duration::days(30)),
        before_migration: Some(Duration::days(14)),
        at_least_verified: Some(2),
        ..Keep::default()
    }
}

/// A moment, so many hours from a Thursday's midnight.
fn at(hours: i64) -> Timestamp {
    chrono::DateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::hours(hours)
}

fn known(hours: i64) -> Known {
    Known {
        key: format!("main/{:08}.manifest.json", 1_000_000 + hours),
        started_at: at(hours),
        before_migration: false,
        marks: Marks::default(),
    }
}

fn marked(hours: i64, pinned: bool, proven: Option<bool>) -> Known {
    let verdict = proven.map(|proven| Verdict { at: at(hours + 1), proven });
    Known { marks: Marks { pinned, verdict }, ..known(hours) }
}

fn any_backup() -> impl Strategy<Value = Known> {
    let verdict = prop_oneof![4 => Just(None), 3 => Just(Some(true)), 1 => Just(Some(false))];
    (-2000_i64..48, prop::bool::weighted(0.1), prop::bool::weighted(0.2), verdict).prop_map(
        |(hours, pinned, before_migration, verdict)| Known { before_migration, ..marked(hours, pinned, verdict) },
    )
}

fn any_backups() -> impl Strategy<Value = Vec<Known>> {
    prop::collection::vec(any_backup(), 0..60).prop_map(|mut all| {
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.dedup_by(|a, b| a.key == b.key);
        all
    })
}

fn any_keep() -> impl Strategy<Value = Keep> {
    let tier = || prop::option::of((1_i64..1500).prop_map(Duration::hours));
    (tier(), tier(), tier(), tier(), tier(), prop::option::of(0_usize..6)).prop_map(
        |(hourly, six_hourly, daily, weekly, before_migration, at_least_verified)| Keep {
            hourly,
            six_hourly,
            daily,
            weekly,
            before_migration,
            at_least_verified,
            ..Keep::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_must_stay_stays(keep in any_keep(), all in any_backups()) {
        let decision = decide(&keep, &all, &[], None, at(0));
        let deleted = |backup: &Known| decision.deleted.contains(&backup.key);
        prop_assert_eq!(decision.kept.len() + decision.deleted.len(), all.len());
        for backup in all.iter().filter(|backup| backup.marks.pinned || backup.marks.disproved()) {
            prop_assert!(!deleted(backup), "pinned, or a person must look: {:?}", backup);
        }
        for backup in all.iter().filter(|backup| backup.started_at > at(0)) {
            prop_assert!(!deleted(backup), "dated in the future: {:?}", backup);
        }
        let good: Vec<&Known> = all.iter().filter(|backup| !backup.marks.disproved()).collect();
        if let Some(last) = good.last() {
            prop_assert!(!deleted(last), "the last good one");
        }
        let proven: Vec<_> = good.iter().filter(|backup| backup.marks.proven_at().is_some()).collect();
        let left = proven.iter().filter(|backup| !deleted(backup)).count();
        prop_assert!(left >= proven.len().min(keep.at_least_verified.unwrap_or(3)), "too few proven ones are left");
        let left = good.iter().filter(|backup| !deleted(backup)).count();
        prop_assert!(left >= good.len().min(keep.at_least_verified.unwrap_or(3)), "too few good ones are left");
    }

    #[test]
    fn every_unit_of_a_tier_that_has_a_good_backup_keeps_one(keep in any_keep(), all in any_backups()) {
        let decision = decide(&keep, &all, &[], None, at(0));
        let days = |backup: &Known| backup.started_at.timestamp().div_euclid(86_400);
        let Some(keeps) = keep.daily else { return Ok(()) };
        let own_tier = |backup: &Known| backup.before_migration && keep.before_migration.is_some();
        let fresh = |backup: &&Known| at(0) - backup.started_at < keeps && !backup.marks.disproved() && !own_tier(backup);
        for backup in all.iter().filter(fresh) {
            let stays = |other: &&Known| days(other) == days(backup) && decision.kept.contains_key(&other.key);
            prop_assert!(all.iter().any(|other| stays(&other)), "nothing is left of the day of {:?}", backup);
        }
    }

    #[test]
    fn a_run_that_was_killed_anywhere_is_finished_by_the_next(
        keep in any_keep(), all in any_backups(), done in prop::collection::vec(any::<bool>(), 60),
    ) {
        let first = decide(&keep, &all, &[], None, at(0));
        let mut gone = first.deleted.iter().zip(&done).filter(|(_, done)| **done).map(|(key, _)| key);
        let gone: BTreeSet<&String> = gone.by_ref().collect();
        let left: Vec<Known> = all.iter().filter(|backup| !gone.contains(&backup.key)).cloned().collect();
        let second = decide(&keep, &left, &[], None, at(0));
        prop_assert_eq!(second.kept, first.kept);
    }

    #[test]
    fn what_is_deleted_would_not_have_been_wanted_later(keep in any_keep(), all in any_backups(), later in 1_i64..500) {
        let first = decide(&keep, &all, &[], None, at(0));
        let after = decide(&keep, &all, &[], None, at(later));
        if after.held.is_some() {
            return Ok(());
        }
        for key in &first.deleted {
            prop_assert!(after.deleted.contains(key), "{key} is kept later: {:?}", after.kept.get(key));
        }
    }

    #[test]
    fn in_doubt_nothing_is_deleted(keep in any_keep(), all in any_backups()) {
        let failed = decide(&keep, &all, &[], Some("no room"), at(0));
        prop_assert!(failed.deleted.is_empty());
        let newer = [known(1000).key];
        prop_assert!(decide(&keep, &all, &newer, None, at(0)).deleted.is_empty() || all.is_empty());
        let long_after = decide(&keep, &all, &[], None, at(24 * 60));
        prop_assert!(long_after.deleted.is_empty(), "backups have stopped, and {:?} are deleted", long_after.deleted);
    }
}

#[test]
fn a_month_of_backups_every_six_hours_leaves_what_the_tiers_say() {
    let all: Vec<Known> = (-120..=0).map(|index| known(index * 6)).collect();
    let decision = decide(&keep(), &all, &[], None, at(1));
    let count =
        |tier: &str| decision.kept.values().filter(|reasons| reasons.iter().any(|reason| reason == tier)).count();
    assert_eq!((count("six_hourly"), count("daily"), count("weekly")), (8, 8, 5));
    assert_eq!(decision.kept.len(), 8 + 5 + 3, "each is counted once: {:#?}", decision.kept);
    assert_eq!(decision.held, None);
}

#[test]
fn backups_before_migrations_have_a_tier_of_their_own() {
    let before = |hours| Known { before_migration: true, ..known(hours) };
    let all = [before(-24 * 15), before(-24 * 3), before(-24 * 3 - 1), known(-2), known(-1), known(0)];
    let decision = decide(&keep(), &all, &[], None, at(0));
    assert_eq!(decision.deleted[0], all[0].key, "older than 14 days");
    assert!(decision.kept[&all[1].key] == ["before_migration"] && decision.kept[&all[2].key] == ["before_migration"]);
}

#[test]
fn proven_ones_are_kept_before_newer_ones_that_were_not() {
    let all =
        [marked(-9000, false, Some(true)), marked(-8000, false, Some(true)), marked(-7000, false, None), known(0)];
    let decision = decide(&keep(), &all, &[], None, at(0));
    assert_eq!(decision.deleted, [all[2].key.clone()]);
}

#[test]
fn an_older_manifest_that_cannot_be_read_holds_nothing_up_and_a_newer_one_does() {
    let all = [known(-9001), known(-9000), known(-1), known(0)];
    assert_eq!(decide(&keep(), &all, &[known(-9002).key], None, at(0)).deleted.len(), 2);
    let held = decide(&keep(), &all, &[known(1).key], None, at(0));
    assert!(held.deleted.is_empty() && held.held.unwrap().contains("cannot be used"));
}

#[test]
fn ages_have_a_unit_that_nobody_means_minutes_by() {
    let read =
        |text: &str| serde_json::from_value::<Keep>(serde_json::json!({"daily": text})).map(|keep| keep.daily.unwrap());
    assert_eq!(read("12w").unwrap(), Duration::days(84));
    assert_eq!(read("36h").unwrap(), Duration::hours(36));
    for wrong in ["", "d", "0d", "30m", "30s", "1.5d", "-1d", "999999999d", "101y", "5ü"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
    assert!(serde_json::from_str::<Keep>(r#"{"dayly": "1d"}"#).is_err());
    assert!(Keep::default().problem().is_some() && keep().problem().is_none());
}
