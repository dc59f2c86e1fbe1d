use super::*;

fn at(text: &str) -> WallTime {
    DateTime::parse_from_rfc3339(&format!("2030-05-{text}:00+02:00")).unwrap()
}

fn ran(succeeded: &str) -> LastRun {
    LastRun { succeeded: Some(at(succeeded)), ..LastRun::default() }
}

const QUARTER: Duration = Duration::from_secs(900);

#[test]
fn every_so_often_after_the_last_success() {
    let timing = Timing::every(QUARTER);
    let now = at("07T10:00");
    let due = |last: &LastRun| timing.due(last, at("07T09:59"), now);
    assert_eq!(due(&LastRun::default()), Due::Now(Duration::from_secs(60)), "never ran");
    assert_eq!(due(&ran("07T09:50")), Due::At(at("07T10:05")));
    assert_eq!(due(&ran("07T09:45")), Due::Now(Duration::ZERO));
    assert_eq!(due(&ran("07T09:00")), Due::Now(Duration::from_secs(45 * 60)));
}

#[test]
fn failures_are_tried_again_ever_later_but_not_later_than_the_rhythm() {
    let now = at("07T10:00");
    let failed = |failures, timing: &Timing| {
        let last = LastRun { succeeded: Some(at("06T10:00")), failed: Some(now), failures };
        match timing.due(&last, now, now) {
            Due::At(at) => (at - now).num_seconds(),
            other => panic!("{other:?}"),
        }
    };
    let timing = Timing::every(QUARTER);
    assert_eq!([1, 2, 3, 8, 9, 99].map(|n| failed(n, &timing)), [2, 4, 8, 256, 300, 300]);
    assert_eq!([1, 9].map(|n| failed(n, &Timing::every(Duration::from_secs(3)))), [2, 3]);
    // A stamp of a clock that was an hour ahead holds nothing up for an hour.
    let ahead = LastRun { succeeded: None, failed: Some(at("07T11:00")), failures: 1 };
    assert_eq!(timing.due(&ahead, now, now), Due::At(plus(now, FIRST_PAUSE)));
}

#[test]
fn cron_patterns_count_from_the_last_success() {
    let timing = Timing::cron("30 3 * * *").unwrap();
    let since = at("07T10:00");
    let due = |last: &LastRun, now: &str| timing.due(last, since, at(now));
    assert_eq!(due(&LastRun::default(), "07T10:00"), Due::At(at("08T03:30")), "not before its time");
    assert_eq!(due(&LastRun::default(), "08T03:31"), Due::Now(Duration::from_secs(60)));
    assert_eq!(due(&ran("08T03:30"), "08T03:31"), Due::At(at("09T03:30")));
    // Nobody was there at its time: made up for, once.
    assert_eq!(due(&ran("06T03:30"), "07T10:00"), Due::Now(Duration::from_secs(390 * 60)));
    assert!(Timing::cron("at noon").is_err());
}

#[test]
fn a_window_holds_back_what_is_due() {
    let night = Timing { window: Some("22:00-06:00".parse().unwrap()), ..Timing::every(QUARTER) };
    let due = |now: &str| night.due(&ran("06T10:00"), at("06T00:00"), at(now));
    assert_eq!(due("07T10:00"), Due::At(at("07T22:00")));
    assert!(matches!(due("07T22:00"), Due::Now(_)));
    assert!(matches!(due("08T05:59"), Due::Now(_)));
    assert_eq!(due("08T06:00"), Due::At(at("08T22:00")));
    assert!(night.is_open(at("07T23:00")) && !night.is_open(at("07T12:00")));
    let noon: Window = "12:00-13:00".parse().unwrap();
    assert_eq!(noon.to_string(), "12:00-13:00");
    assert!(noon.contains(at("07T12:59").time()) && !noon.contains(at("07T13:00").time()));
    for wrong in ["", "12:00", "12:00-12:00", "24:00-25:00", "a-b"] {
        assert!(wrong.parse::<Window>().is_err(), "{wrong}");
    }
}

/// A day of a simulated clock: each task runs as often as its timing says, whatever the tick.
#[test]
fn a_day_of_the_scheduler() {
    for tick in [1, 7, 60] {
        let night = Timing {
            window: Some("22:00-06:00".parse().unwrap()),
            ..Timing::every(Duration::from_secs(3600))
        };
        let tasks = [Timing::every(QUARTER), night, Timing::cron("0 */6 * * *").unwrap()];
        let (start, mut runs, mut last) = (at("07T00:00"), [0; 3], [LastRun::default(); 3]);
        for second in (0..86_400).step_by(tick) {
            let now = start + TimeDelta::seconds(i64::from(second));
            for ((timing, last), runs) in tasks.iter().zip(&mut last).zip(&mut runs) {
                if let Due::Now(_) = timing.due(last, start, now) {
                    *last = LastRun { succeeded: Some(now), ..LastRun::default() };
                    *runs += 1;
                }
            }
        }
        // Hours 0 to 5, and 22 and 23; at 6, 12 and 18.
        assert_eq!(runs[2], 3, "tick {tick}");
        assert!((94..=96).contains(&runs[0]) && (7..=8).contains(&runs[1]), "tick {tick}: {runs:?}");
    }
}
