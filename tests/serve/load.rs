//! Many clients at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Answer, Server};
use super::{pictures, place};

const CLIENTS: usize = 20;
const REQUESTS: usize = 200;
/// Different requests.
const KINDS: usize = 12;

/// Settings, classes, seeds and numbers in all combinations that matter.
fn kind(i: usize) -> Value {
    let (class, cfg) = (["disc", "star", "moon"][i % 3], [1.0, 3.0][i % 2]);
    json!({
        "class": class,
        "seed": i / 2,
        "num": 1 + i % 4,
        "cfg": cfg,
    })
}

#[test]
fn two_hundred_requests_of_twenty_clients_are_answered_or_refused_and_never_mixed_up() {
    let folder = place();
    let server = Server::start(folder.path(), "--max-queue 32");
    let expected: Vec<_> = (0..KINDS)
        .map(|i| pictures(&server.draw(&kind(i))))
        .collect();
    for (i, one) in expected.iter().enumerate() {
        assert!(
            expected[..i].iter().all(|other| other != one),
            "{i} is like another"
        );
    }
    let before = server.peak();
    let (next, statuses) = (
        AtomicUsize::new(0),
        Mutex::new(BTreeMap::<u16, usize>::new()),
    );
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, SeqCst);
                    if i >= REQUESTS {
                        return;
                    }
                    let body = kind(i % KINDS);
                    let status = match i % 5 {
                        // Every fifth reads events, and half of those leave after the first bytes.
                        0 if i % 2 == 0 => {
                            drop(server.stream(&body));
                            0
                        }
                        0 => {
                            let answer = Answer::read(server.stream(&body));
                            if answer.status == 200 {
                                let events = answer.events();
                                let names = events.iter().map(|(name, _)| name.as_str());
                                let previews = names.filter(|name| *name == "preview").count();
                                assert!(previews >= 4, "{previews} previews");
                                assert_eq!(events.last().expect("an end").0, "done");
                            }
                            answer.status
                        }
                        _ => {
                            let answer = server.draw(&body);
                            if answer.status == 200 {
                                let found = pictures(&answer);
                                assert!(found == expected[i % KINDS], "request {i} got another's");
                            }
                            answer.status
                        }
                    };
                    if status == 429 {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    let mut statuses = statuses.lock().expect("a lock");
                    *statuses.entry(status).or_default() += 1;
                }
            });
        }
    });
    let statuses = statuses.into_inner().expect("a lock");
    let grown = server.peak().saturating_sub(before) >> 20;
    eprintln!(
        "{statuses:?}; peak memory {} MiB before, {grown} MiB more after",
        before >> 20
    );
    assert_eq!(statuses.values().sum::<usize>(), REQUESTS);
    assert!(
        statuses.keys().all(|status| [0, 200, 429].contains(status)),
        "{statuses:?}"
    );
    assert!(statuses[&200] >= 60, "{statuses:?}");
    assert!(grown < 100, "{grown} MiB more");
    server.wait_for("rdpm_waiting_requests", 0.0);
    assert_eq!(pictures(&server.draw(&kind(0))), expected[0]);
    let mean = server.metric("rdpm_batch_images_total") / server.metric("rdpm_batches_total");
    assert!(
        mean > 2.0,
        "batches of {mean} images: requests do not share any"
    );
}
