use super::*;
use crate::config::Crop;
use crate::data::Classes;
use crate::data::shapes::Shapes;

fn options(workers: usize) -> LoaderOptions {
    LoaderOptions {
        batch_size: 3,
        workers,
        skip_bad: false,
    }
}

const AUGMENT: Augment = Augment {
    size: 24,
    crop: Crop::Random,
    flip: true,
};

fn shuffled(source: Arc<dyn Source>, workers: usize, start: u64) -> Loader {
    Loader::shuffled(source, &options(workers), AUGMENT, 5, start).unwrap()
}

fn values(batch: &Batch) -> (Vec<f32>, Vec<u32>, Vec<u64>) {
    let images = batch.images.flatten_all().unwrap().to_vec1().unwrap();
    (images, batch.labels.clone(), batch.indices.clone())
}

fn take(loader: Loader, count: usize) -> Vec<(Vec<f32>, Vec<u32>, Vec<u64>)> {
    loader
        .take(count)
        .map(|batch| values(&batch.unwrap()))
        .collect()
}

#[test]
fn batches_are_the_same_whatever_the_number_of_workers() {
    let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
    let one = take(shuffled(source.clone(), 1, 0), 9);
    assert_eq!(one[8].2, [24, 25, 26]);
    for workers in [2, 3, 7] {
        assert_eq!(take(shuffled(source.clone(), workers, 0), 9), one);
    }
}

#[test]
fn a_run_continues_at_any_number_across_epochs() {
    let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
    let all = take(shuffled(source.clone(), 2, 0), 8);
    assert_eq!(take(shuffled(source, 2, 9), 5), all[3..]);
}

#[test]
fn processes_take_the_batches_in_turn() {
    let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
    let all = take(shuffled(source.clone(), 2, 6), 8);
    for rank in 0..2 {
        let share = Share { rank, size: 2 };
        let own = Loader::shared(source.clone(), &options(3), AUGMENT, 5, 6, share).unwrap();
        let expected: Vec<_> = all.iter().skip(rank).step_by(2).cloned().collect();
        assert_eq!(take(own, 4), expected, "rank {rank}");
    }
}

#[test]
fn every_epoch_holds_every_image_once_in_another_order() {
    let order = Order::new(3, 100);
    let epoch = |e: u64| {
        (e * 100..(e + 1) * 100)
            .map(|n| order.place(n))
            .collect::<Vec<_>>()
    };
    for e in 0..3 {
        let mut sorted = epoch(e);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }
    assert_ne!(epoch(0), epoch(1));
    assert_ne!(Order::new(4, 100).place(0), order.place(0));
    assert_eq!(
        epoch(0),
        (0..100)
            .map(|n| Order::new(3, 100).place(n))
            .collect::<Vec<_>>()
    );
}

#[test]
fn an_ordered_pass_sees_every_image_once_and_ends() {
    let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
    let pass = |mirror| {
        take(
            Loader::ordered(source.clone(), &options(4), 32, mirror).unwrap(),
            usize::MAX,
        )
    };
    let (plain, mirrored) = (pass(false), pass(true));
    let indices: Vec<u64> = plain.iter().flat_map(|b| b.2.clone()).collect();
    assert_eq!(indices, (0..10).collect::<Vec<_>>());
    assert_eq!(plain[3].1, [9]);
    let row = |batch: &(Vec<f32>, Vec<u32>, Vec<u64>)| batch.0[..32 * 3].to_vec();
    let back: Vec<f32> = row(&mirrored[0])
        .chunks(3)
        .rev()
        .flatten()
        .copied()
        .collect();
    assert_eq!(back, row(&plain[0]));
    let first = source.read(0).unwrap().image;
    let expected: Vec<f32> = first.as_raw()[..32 * 3]
        .iter()
        .map(|&p| f32::from(p) / 127.5 - 1.0)
        .collect();
    assert_eq!(row(&plain[0]), expected);
}

#[test]
fn what_was_made_is_counted_whether_taken_or_not() {
    let source = Arc::new(Shapes::new(1, 10));
    let mut loader = Loader::ordered(source, &options(3), 32, false).unwrap();
    let (mut taken, mut batches) = (0, 0);
    while let Some(batch) = loader.next() {
        taken += batch.unwrap().labels.len() as u64;
        batches += 1;
        assert!(loader.made() >= taken, "batch {batches}");
    }
    assert_eq!((taken, loader.made()), (10, 10));
}

#[test]
fn a_shuffled_batch_holds_the_crops_mirrored_where_asked() {
    let source: Arc<dyn Source> = Arc::new(Shapes::new(1, 10));
    let order = Order::new(5, 10);
    let mut mirrored = 0;
    for batch in take(shuffled(source.clone(), 2, 0), 8) {
        for (values, n) in batch.0.chunks(24 * 24 * 3).zip(batch.2) {
            let image = source.read(order.place(n)).unwrap().image;
            let mut expected = AUGMENT.cut(&image, 5, n);
            if AUGMENT.flips(5, n) {
                expected = image::imageops::flip_horizontal(&expected);
                mirrored += 1;
            }
            let expected = expected.as_raw().iter();
            assert!(
                expected
                    .map(|&p| f32::from(p) / 127.5 - 1.0)
                    .eq(values.iter().copied()),
                "example {n}"
            );
        }
    }
    assert!((1..24).contains(&mirrored), "{mirrored}");
}

#[test]
fn a_spread_batch_reaches_over_the_whole_source() {
    let spread = |bad: &[usize], batch_size| {
        let options = LoaderOptions {
            batch_size,
            workers: 2,
            skip_bad: true,
        };
        let batches = take(
            Loader::spread(damaged(bad, None), &options, 32).unwrap(),
            usize::MAX,
        );
        assert_eq!(batches.len(), 1);
        batches[0].1.clone()
    };
    assert_eq!(spread(&[], 4), [0, 2, 5, 7]);
    assert_eq!(spread(&[2], 4), [0, 3, 5, 7]);
    assert_eq!(spread(&[], 64), (0..10).collect::<Vec<_>>());
}

/// A source in which some drawings cannot be read, and one makes its reader panic.
struct Damaged {
    shapes: Shapes,
    bad: Vec<usize>,
    panics: Option<usize>,
}

impl Source for Damaged {
    fn len(&self) -> usize {
        self.shapes.len()
    }
    fn classes(&self) -> &Classes {
        self.shapes.classes()
    }
    fn read(&self, index: usize) -> Result<Example> {
        assert_ne!(Some(index), self.panics);
        match self.bad.contains(&index) {
            true => Err(hinted(format!("path/{index}: bad"), "")),
            false => self.shapes.read(index),
        }
    }
    fn fingerprint(&self) -> Result<String> {
        self.shapes.fingerprint()
    }
}

fn damaged(bad: &[usize], panics: Option<usize>) -> Arc<dyn Source> {
    Arc::new(Damaged {
        shapes: Shapes::new(1, 10),
        bad: bad.to_vec(),
        panics,
    })
}

#[test]
fn the_first_bad_image_is_the_error_and_the_last_item() {
    for workers in [1, 2, 5] {
        let loader = Loader::ordered(damaged(&[4, 5, 8], None), &options(workers), 32, false);
        let items: Vec<_> = loader.unwrap().collect();
        assert_eq!(items.len(), 2, "{workers} workers");
        assert_eq!(items[0].as_ref().unwrap().indices, [0, 1, 2]);
        assert_eq!(items[1].as_ref().unwrap_err().to_string(), "path/4: bad");
    }
}

#[test]
fn a_panic_becomes_an_error() {
    let loader = Loader::ordered(damaged(&[], Some(1)), &options(2), 32, false);
    let items: Vec<_> = loader.unwrap().collect();
    assert_eq!(items.len(), 1);
    assert!(
        items[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("panicked at example 1")
    );
}

#[test]
fn batches_of_an_ordered_pass_are_divided_by_place_whatever_is_bad() {
    let options = LoaderOptions {
        skip_bad: true,
        ..options(2)
    };
    let batches = |bad: &[usize], rank, size| -> Vec<Vec<u64>> {
        let share = Share { rank, size };
        let loader = Loader::ordered_share(damaged(bad, None), &options, 32, share).unwrap();
        take(loader, usize::MAX).into_iter().map(|b| b.2).collect()
    };
    for bad in [&[][..], &[4, 5, 8], &[3, 4, 5], &[9]] {
        let whole: Vec<Vec<u64>> = (0..10u64)
            .collect::<Vec<_>>()
            .chunks(3)
            .map(|places| {
                let whole = places.iter().copied();
                whole.filter(|n| !bad.contains(&(*n as usize))).collect()
            })
            .collect();
        for size in [1, 2, 3, 5] {
            for rank in 0..size {
                let own = whole.iter().skip(rank).step_by(size);
                let own: Vec<Vec<u64>> = own.filter(|b| !b.is_empty()).cloned().collect();
                assert_eq!(batches(bad, rank, size), own, "{bad:?}, {rank} of {size}");
            }
        }
    }
}

#[test]
fn skipped_images_are_counted_once_and_their_place_is_taken() {
    let skip = |workers| LoaderOptions {
        skip_bad: true,
        ..options(workers)
    };
    let source = damaged(&[4, 5, 8], None);
    let ordered = Loader::ordered(source.clone(), &skip(2), 32, false).unwrap();
    let indices: Vec<u64> = take(ordered, usize::MAX)
        .into_iter()
        .flat_map(|b| b.2)
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 6, 7, 9]);

    let mut runs =
        [1, 3].map(|w| Loader::shuffled(source.clone(), &skip(w), AUGMENT, 5, 0).unwrap());
    let batches = |run: &mut Loader| {
        run.take(12)
            .map(|b| values(&b.unwrap()))
            .collect::<Vec<_>>()
    };
    let [one, three] = runs.each_mut().map(batches);
    assert_eq!(one, three);
    assert_eq!(runs[0].skipped(), 3);
    let labels: Vec<u32> = one.iter().take(10).flat_map(|b| b.1.clone()).collect();
    let count = |label: u32| labels.iter().filter(|&&l| l == label).count();
    assert_eq!(
        [count(4), count(5), count(6), count(8), count(9)],
        [0, 0, 9, 0, 6]
    );

    let all: Vec<usize> = (0..10).collect();
    let mut none = Loader::shuffled(damaged(&all, None), &skip(2), AUGMENT, 5, 0).unwrap();
    assert!(none.next().unwrap().is_err());
}

#[test]
fn dropping_a_loader_that_is_ahead_ends_its_threads() {
    for workers in [1, 4] {
        let mut loader = shuffled(Arc::new(Shapes::new(1, 10)), workers, 0);
        loader.next().unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(loader);
    }
}
