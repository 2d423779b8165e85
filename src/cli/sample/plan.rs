//! Which images are made, and in which order.

use crate::sample::Output;

/// Without --num: at least this many images, the same number for every class.
const SHEET: usize = 16;
/// The longest row of a sheet that has one row per class.
const LONGEST_ROW: usize = 20;

/// Which images to make: image i is of class `classes[i % classes.len()]`.
#[derive(Debug, PartialEq)]
pub struct SampleSheet {
    pub classes: Vec<u32>,
    pub count: usize,
    /// Image numbers in the order in which they are made and written.
    pub numbers: Vec<u64>,
    /// Images per row of a sheet.
    pub columns: usize,
}

impl SampleSheet {
    /// On a sheet of several classes each row is a class; elsewhere classes alternate.
    pub fn new(classes: Vec<u32>, asked: Option<u32>, output: &Output) -> Self {
        let c = classes.len();
        let count = asked.map_or(SHEET.next_multiple_of(c), |n| n as usize);
        let a_class = count.div_ceil(c);
        let mut numbers: Vec<u64> = (0..count as u64).collect();
        let by_row = matches!(output, Output::Grid(..))
            && c > 1
            && (2..=LONGEST_ROW).contains(&a_class)
            && count.is_multiple_of(c);
        if by_row {
            numbers.sort_by_key(|n| n % c as u64);
        }
        let columns = if by_row {
            a_class
        } else {
            (count as f64).sqrt().ceil() as usize
        };
        Self {
            classes,
            count,
            numbers,
            columns,
        }
    }

    pub fn label(&self, number: u64) -> u32 {
        self.classes[(number % self.classes.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_has_a_row_a_class_and_files_alternate() {
        let sheet = Output::Grid("a.png".into(), Default::default());
        let plan = SampleSheet::new(vec![7, 3], Some(6), &sheet);
        assert_eq!(
            (plan.columns, &plan.numbers[..]),
            (3, &[0, 2, 4, 1, 3, 5][..])
        );
        assert_eq!(
            plan.numbers
                .iter()
                .map(|n| plan.label(*n))
                .collect::<Vec<_>>(),
            [7, 7, 7, 3, 3, 3]
        );
        let file = SampleSheet::new(vec![7, 3], Some(5), &Output::Npz("a.npz".into()));
        assert_eq!(
            file.numbers
                .iter()
                .map(|n| file.label(*n))
                .collect::<Vec<_>>(),
            [7, 3, 7, 3, 7]
        );
        assert_eq!(SampleSheet::new(vec![1], None, &sheet).columns, 4);
        assert_eq!(SampleSheet::new((0..10).collect(), None, &sheet).count, 20);
        assert_eq!(
            SampleSheet::new((0..1000).collect(), None, &sheet).columns,
            32
        );
    }
}
