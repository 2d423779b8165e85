//! Ranks as threads of one process.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::error::report;

/// The places of `size` ranks, at a port that is theirs until the end of the tests.
fn places(size: usize) -> Vec<Place> {
    static RESERVED: Mutex<Vec<Port>> = Mutex::new(Vec::new());
    let reserved = Port::reserve().expect("a port");
    let port = reserved.number();
    RESERVED.lock().expect("no panic").push(reserved);
    let place = |rank| Place {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        host: "127.0.0.1".to_string(),
        port,
        token: "this job".to_string(),
        patience: Duration::from_secs(60),
    };
    (0..size).map(place).collect()
}

/// What `body` returns at each of these ranks.
fn at_all<T: Send>(places: &[Place], body: impl Fn(&World) -> Result<T> + Sync) -> Vec<Result<T>> {
    thread::scope(|scope| {
        let ranks: Vec<_> = places
            .iter()
            .map(|place| {
                let body = &body;
                scope.spawn(move || World::join(place, Work::TRAINING)?.run(body))
            })
            .collect();
        let ended = ranks.into_iter().map(|rank| rank.join().expect("no panic"));
        ended.collect()
    })
}

fn all<T: Send>(size: usize, body: impl Fn(&World) -> Result<T> + Sync) -> Vec<T> {
    let results = at_all(&places(size), body);
    results.into_iter().map(|r| r.expect("no error")).collect()
}

/// Numbers whose sum depends on its order.
fn values(rank: usize) -> Vec<f32> {
    let value =
        |i: usize| ((i * 7 + rank * 13) as f32).sin() * 10f32.powi((rank * 5 + i) as i32 % 9);
    (0..40_000).map(value).collect()
}

#[test]
fn a_sum_is_that_of_one_process_adding_in_the_order_of_ranks() {
    for size in [2, 4] {
        let mut expected = values(0);
        for rank in 1..size {
            let more = values(rank);
            expected.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
        let mut reversed = values(size - 1);
        for rank in (0..size - 1).rev() {
            let more = values(rank);
            reversed.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
        assert!(
            size == 2 || expected != reversed,
            "the order is of no matter"
        );
        let found = all(size, |world| {
            let mut mine = values(world.rank());
            world.sum(&mut mine)?;
            let mut counts = [world.rank() as u64, 1];
            world.sum(&mut counts)?;
            assert_eq!(counts, [(size * (size - 1) / 2) as u64, size as u64]);
            Ok(mine)
        });
        assert!(found.iter().all(|sum| *sum == expected));
    }
}

#[test]
fn small_things_reach_all_ranks() {
    let made = std::sync::atomic::AtomicUsize::new(0);
    all(3, |world| {
        let rank = world.rank();
        let own = vec![rank as u8; rank];
        let gathered = world.gather(&own)?;
        assert_eq!(gathered, [vec![], vec![1], vec![2, 2]]);
        assert_eq!(world.broadcast(vec![rank as u8 + 7])?, [7]);
        assert_eq!(world.agree(1 << rank)?, 0b111);
        let order =
            world.first_then(|| Ok(made.fetch_add(1, std::sync::atomic::Ordering::SeqCst)))?;
        assert_eq!(order == 0, world.is_first());
        world.same(&[("a seed of", "7".to_string())])?;
        world.part()
    });
}

/// A square, which ranks compute in turn.
#[derive(Debug, PartialEq)]
struct Square(u64);

impl Parcel for Square {
    fn pack(&self, bytes: &mut Bytes) {
        bytes.put_u64(self.0);
    }

    fn unpack(bytes: &mut Bytes) -> Result<Self> {
        bytes.u64().map(Self)
    }
}

#[test]
fn parcels_come_in_order_whoever_makes_them() {
    // All of them, and as far as one rank asks to stop after its third.
    for (size, count, asked, expected) in [
        (1, 7, None, 7),
        (2, 7, None, 7),
        (3, 7, None, 7),
        (3, 0, None, 0),
        (3, 1, None, 1),
        (1, 70, Some(0), 3),
        (3, 70, Some(2), 9),
        (3, 9, Some(2), 9),
    ] {
        let work = |world: &World| {
            let (mut made, mut taken) = (Vec::new(), Vec::new());
            let asking = std::cell::Cell::new(0);
            let stopped = world.parcels(
                2..2 + count,
                || {
                    asking.set(asking.get() + 1);
                    asked == Some(world.rank()) && asking.get() == 3
                },
                |i| {
                    made.push(i);
                    Ok(Square((i * i) as u64))
                },
                |i, square| {
                    taken.push((i, square));
                    Ok(())
                },
            )?;
            assert_eq!(stopped, asked.map(|_| 2 + expected), "{size} ranks");
            world.part()?;
            assert!(made.iter().all(|i| (i - 2) % size == world.rank()));
            Ok(taken)
        };
        let taken = match size {
            1 => vec![work(&World::alone()).expect("no error")],
            _ => all(size, work),
        };
        let squares = (2..2 + expected).map(|i| (i, Square((i * i) as u64)));
        assert_eq!(taken[0], squares.collect::<Vec<_>>(), "{size} ranks");
        assert!(taken[1..].iter().all(Vec::is_empty));
    }
}

#[test]
fn a_parcel_that_is_cut_or_too_long_is_refused() {
    let mut bytes = Bytes::default();
    bytes.put_u32(7);
    bytes.put_f32s(&[1.5, -2.0]);
    bytes.put_bytes(b"word");
    let read = |bytes: &mut Bytes| -> Result<_> {
        let found = (bytes.u32()?, bytes.f32s()?, bytes.bytes()?.to_vec());
        bytes.end()?;
        Ok(found)
    };
    let whole = bytes.clone().into_vec();
    let found = read(&mut Bytes::from(whole.clone())).expect("whole");
    assert_eq!(found, (7, vec![1.5, -2.0], b"word".to_vec()));
    let longer = [&whole[..], b"x"].concat();
    let huge = [&whole[..4], &u64::MAX.to_le_bytes()[..], &whole[12..]].concat();
    for wrong in [&whole[..whole.len() - 1], &whole[..3], &longer, &huge] {
        assert!(read(&mut Bytes::from(wrong.to_vec())).is_err());
    }
}

#[test]
fn a_rank_that_differs_is_named() {
    let results = at_all(&places(3), |world| {
        let seed = if world.rank() == 2 { 8 } else { 7 };
        let differs = world.same(&[
            ("a version of", "1".to_string()),
            ("a seed of", seed.to_string()),
        ]);
        world.part()?;
        differs
    });
    for result in results {
        let (text, _) = report(&result.expect_err("it differs"));
        assert!(
            text.contains("rank 2 (") && text.contains("has a seed of 8, but rank 0 ("),
            "{text}"
        );
    }
}

#[test]
fn one_process_is_its_own_world() -> Result<()> {
    let world = World::alone();
    let mut values = [1.5f32, -0.0];
    world.sum(&mut values)?;
    assert_eq!(values.map(f32::to_bits), [1.5f32, -0.0].map(f32::to_bits));
    assert_eq!(world.gather(b"x")?, [b"x"]);
    assert_eq!(world.broadcast(vec![3])?, [3]);
    assert_eq!((world.agree(5)?, world.rank(), world.size()), (5, 0, 1));
    assert_eq!(world.share(), Share::WHOLE);
    world.part()
}

#[test]
fn strangers_are_turned_away_and_waited_past() {
    let places = places(2);
    let mut stranger = places[1].clone();
    stranger.token = "another job".to_string();
    thread::scope(|scope| {
        let first = scope.spawn(|| World::join(&places[0], Work::TRAINING)?.run(World::part));
        let at = (&*places[0].host, places[0].port);
        let mut browser = loop {
            match TcpStream::connect(at) {
                Ok(connected) => break connected,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        browser.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let error = World::join(&stranger, Work::TRAINING).expect_err("it is refused");
        let (text, code) = report(&error);
        assert!(text.contains("the token differs") && code == 2, "{text}");
        World::join(&places[1], Work::TRAINING)
            .and_then(|world| world.run(World::part))
            .expect("it belongs here");
        first.join().expect("no panic").expect("it meets its own");
    });
}

/// One visitor after the other would take five seconds each.
#[test]
fn visitors_that_say_nothing_hold_up_nobody() {
    let places = places(2);
    thread::scope(|scope| {
        let first = scope.spawn(|| World::join(&places[0], Work::TRAINING)?.run(World::part));
        let at = (&*places[0].host, places[0].port);
        let begin = Instant::now();
        let silent = |number: u8| loop {
            if let Ok(mut connected) = TcpStream::connect(at) {
                // The beginning of a frame, and no more.
                connected
                    .write_all(&[1, number][..usize::from(number) % 3])
                    .expect("sent");
                break connected;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let kept: Vec<TcpStream> = (0..30).map(silent).collect();
        World::join(&places[1], Work::TRAINING)
            .and_then(|world| world.run(World::part))
            .expect("it is let in");
        first.join().expect("no panic").expect("it meets its own");
        assert!(begin.elapsed() < Duration::from_secs(30));
        drop(kept);
    });
}

#[test]
fn rank_0_listens_where_it_is_told_and_nowhere_else() {
    for (host, is_open) in [
        ("127.0.0.1", false),
        ("localhost", false),
        ("0.0.0.0", true),
    ] {
        let mut place = places(2).swap_remove(0);
        place.host = host.to_string();
        let listener = star::listen(&place).expect("a port");
        let address = listener.local_addr().expect("its own").ip();
        assert_eq!(address.is_loopback(), !is_open, "{host}: {address}");
        assert_eq!(address.is_unspecified(), is_open, "{host}: {address}");
    }
}

#[test]
fn ranks_that_cannot_be_together_are_named() {
    let mut places = places(3);
    for place in &mut places {
        place.patience = Duration::from_secs(10);
    }
    places[1].size = 2;
    let results = at_all(&places[..2], |_| Ok(()));
    for result in results {
        let (text, code) = report(&result.expect_err("it does not fit"));
        assert!(
            text.contains("rank 1") && text.contains("counts 2 processes, rank 0 counts 3"),
            "{text}"
        );
        assert_eq!(code, 2);
    }
    places[1] = places[2].clone();
    let results = at_all(&places, |_| Ok(()));
    let texts: Vec<String> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|e| report(&e).0)
        .collect();
    assert!(
        texts
            .iter()
            .any(|text| text.contains("another process has this rank")),
        "{texts:?}"
    );
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let mut places = places(3);
    places
        .iter_mut()
        .for_each(|place| place.patience = Duration::from_millis(300));
    let (text, _) = report(&World::join(&places[0], Work::TRAINING).expect_err("nobody comes"));
    assert!(text.contains("ranks [1, 2] of 3 did not come"), "{text}");
    let (text, _) =
        report(&World::join(&places[2], Work::TRAINING).expect_err("there is no rank 0"));
    assert!(
        text.contains("rank 2 found no rank 0 at 127.0.0.1:"),
        "{text}"
    );
}
