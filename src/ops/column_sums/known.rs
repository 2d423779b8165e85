//! Column sums of gradients that somebody already knows: the pass that wrote a gradient can leave
//! them, or the operation that computed them first.
//!
//! Remembered while a [`Tape`](crate::ops::Tape) is walked, by the gradient's [`TensorId`], which
//! no other tensor ever gets: a gradient to which another is added is a new tensor, and its sums
//! are unknown.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Tensor, TensorId};

type Sums = HashMap<TensorId, Tensor>;

thread_local! {
    /// None while no tape is walked on this thread.
    static KNOWN: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// Sums are remembered on this thread while it exists.
pub struct Remembering {
    /// What a walk around this one remembers.
    outer: Option<Sums>,
}

impl Remembering {
    pub fn start() -> Self {
        Self {
            outer: KNOWN.replace(Some(Sums::new())),
        }
    }
}

impl Drop for Remembering {
    fn drop(&mut self) {
        KNOWN.set(self.outer.take());
    }
}

/// Whether sums are of use: whether anybody can ask for them later.
pub fn is_remembering() -> bool {
    KNOWN.with_borrow(Option::is_some)
}

/// Remembers the sums [C] of `gradient` [..,C] over its rows.
pub fn remember(gradient: &Tensor, sums: &Tensor) {
    assert_eq!(gradient.dims().last(), sums.dims().last());
    KNOWN.with_borrow_mut(|known| {
        if let Some(known) = known {
            known.insert(gradient.id(), sums.clone());
        }
    });
}

/// The sums of this gradient, if they are known.
pub fn recall(gradient: &Tensor) -> Option<Tensor> {
    KNOWN.with_borrow(|known| known.as_ref()?.get(&gradient.id()).cloned())
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use candle_core::{Result, Var};

    use super::*;
    use crate::ops::testing::normal;
    use crate::ops::{Tape, add, tape};

    /// x as it is; its gradient is one whose column sums are remembered.
    fn leaves_sums(x: &Tensor) -> Result<Tensor> {
        let y = (x * 1.0)?;
        tape::note(&[x], &y, |_, _, dy| {
            let dx = (dy * 2.0)?.detach();
            remember(&dx, &dx.sum(0)?);
            Ok(vec![Some(dx)])
        });
        Ok(y)
    }

    /// x as it is; `asked` becomes the gradient of y and the sums that are known of it.
    fn asks(x: &Tensor, asked: &Asked) -> Result<Tensor> {
        let (y, asked) = ((x * 1.0)?, asked.clone());
        tape::note(&[x], &y, move |_, _, dy| {
            asked.replace(Some((dy.clone(), recall(dy))));
            Ok(vec![Some(dy.clone())])
        });
        Ok(y)
    }

    type Asked = Rc<RefCell<Option<(Tensor, Option<Tensor>)>>>;

    /// What is known of a gradient after a walk over `f` of a tensor that asks.
    fn known_of(f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let x = Var::from_tensor(&normal(1, (5, 3)))?;
        let asked = Asked::default();
        let tape = Tape::start();
        let y = f(&asks(&x, &asked)?)?;
        tape.backward(tape::plain([&y], |[y]| y.sqr()?.sum_all())?)?;
        Ok(asked.take().expect("the walk passes it"))
    }

    #[test]
    fn the_sums_that_are_left_reach_whoever_made_the_input() -> Result<()> {
        let (gradient, sums) = known_of(leaves_sums)?;
        let sums = sums.expect("they were left").to_vec1::<f32>()?;
        assert_eq!(sums, gradient.sum(0)?.to_vec1::<f32>()?);
        assert!(recall(&gradient).is_none(), "they end with the walk");
        Ok(())
    }

    #[test]
    fn a_gradient_with_another_added_has_unknown_sums() -> Result<()> {
        let (_, first) = known_of(|x| add(&leaves_sums(x)?, x))?;
        assert!(first.is_none());
        let (_, both) = known_of(|x| add(&leaves_sums(x)?, &leaves_sums(x)?))?;
        assert!(both.is_none());
        Ok(())
    }

    #[test]
    fn a_walk_inside_another_leaves_the_outer_one_what_it_knows() -> Result<()> {
        let (x, y) = (normal(1, (5, 3)), normal(2, (5, 3)));
        assert!(!is_remembering());
        let outer = Remembering::start();
        remember(&x, &x.sum(0)?);
        let inner = Remembering::start();
        remember(&y, &y.sum(0)?);
        assert!(recall(&x).is_none() && recall(&y).is_some());
        drop(inner);
        assert!(recall(&x).is_some() && recall(&y).is_none());
        drop(outer);
        assert!(!is_remembering() && recall(&x).is_none());
        Ok(())
    }
}
