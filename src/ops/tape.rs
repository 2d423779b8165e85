//! Reverse-mode differentiation over this module's operations, instead of candle's own backward.
//!
//! candle adds every gradient, even a tensor's only one, to a tensor of zeros: three serial passes
//! over memory per operation, a tenth of a small training step. A [`Tape`] records each operation
//! of its thread while it exists. [`Tape::backward`] walks back over the records, takes a first
//! gradient as it is, and frees what it has walked.
//!
//! candle's graph is still built and stays valid: both use the gradient of an operation's CustomOp.
//! A gradient must reach a recorded result or a variable; anything else is an error, so that no
//! gradient is silently lost.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Error, Result, Tensor, TensorId, Var};

#[cfg(any(test, feature = "cuda"))]
use super::column_sums::known::Remembering;

/// (inputs, output, gradient of the output) → gradients of the inputs.
type Backward = Box<dyn FnOnce(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>>;

/// A function whose own records were not kept.
type Recompute = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

enum Rule {
    Gradient(Backward),
    Recompute(Recompute),
}

struct Note {
    inputs: Vec<Tensor>,
    output: Tensor,
    rule: Rule,
}

/// Gradients found for variables.
type Found = HashMap<TensorId, (Tensor, Tensor)>;

thread_local! {
    /// The gradient that has already reached the first input of the operation whose gradient is
    /// being computed.
    static REACHED: RefCell<Option<Tensor>> = const { RefCell::new(None) };
    /// The tapes of this thread, the innermost last; None for a tape that is being walked.
    static TAPES: RefCell<Vec<Option<Vec<Note>>>> = const { RefCell::new(Vec::new()) };
}

/// Records this thread's operations from [`Tape::start`] until it is walked or dropped.
pub struct Tape {
    place: usize,
    /// Makes the tape stay on its thread.
    _thread: PhantomData<*const ()>,
}

impl Tape {
    pub fn start() -> Self {
        TAPES.with_borrow_mut(|tapes| {
            tapes.push(Some(Vec::new()));
            Self {
                place: tapes.len() - 1,
                _thread: PhantomData,
            }
        })
    }

    /// d`loss`/dx of every variable x that `loss` depends on.
    ///
    /// Drop other references to the graph first, so that memory is freed during the walk. Errors: a
    /// gradient reaches the result of an operation that was not recorded.
    pub fn backward(self, loss: Tensor) -> Result<GradStore> {
        let notes = self.take();
        let seed = loss.ones_like()?;
        #[cfg(any(test, feature = "cuda"))]
        let _remembering = Remembering::start();
        let (found, _) = walk(notes, loss, seed, None)?;
        let mut store = GradStore::default();
        for (variable, gradient) in found.into_values() {
            store.insert(&variable, gradient);
        }
        Ok(store)
    }

    /// Ends the recording; the records so far.
    fn take(self) -> Vec<Note> {
        TAPES.with_borrow_mut(|tapes| {
            tapes.truncate(self.place + 1);
            tapes[self.place].take().unwrap_or_default()
        })
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        // The records are dropped outside, because dropping a tensor may take long.
        let notes = TAPES.with_borrow_mut(|tapes| tapes.split_off(self.place.min(tapes.len())));
        drop(notes);
    }
}

/// Walks back from `output`, whose gradient is `seed`: the gradients of the variables, and that of
/// `input`, which no record made.
fn walk(
    mut notes: Vec<Note>,
    output: Tensor,
    seed: Tensor,
    input: Option<TensorId>,
) -> Result<(Found, Option<Tensor>)> {
    let mut made: HashSet<TensorId> = notes.iter().map(|note| note.output.id()).collect();
    if !made.contains(&output.id()) {
        return Err(not_made(output.dims()));
    }
    made.extend(input);
    let mut gradients = HashMap::from([(output.id(), seed)]);
    let mut found = Found::new();
    drop(output);
    while let Some(note) = notes.pop() {
        made.remove(&note.output.id());
        let Some(gradient) = gradients.remove(&note.output.id()) else {
            continue;
        };
        let parts = match note.rule {
            Rule::Gradient(backward) => {
                let first = note.inputs.first().map(Tensor::id);
                let reached = first.and_then(|id| gradients.remove(&id));
                REACHED.set(reached);
                let parts = backward(&note.inputs, &note.output, &gradient)?;
                if let (Some(id), Some(reached)) = (first, REACHED.take()) {
                    gradients.insert(id, reached);
                }
                parts
            }
            Rule::Recompute(f) => {
                let x = Var::from_tensor(&note.inputs[0].detach())?;
                let (notes, y) = recorded(|| f(&x))?;
                let (inner, part) = walk(notes, y, gradient.clone(), Some(x.id()))?;
                for (variable, part) in inner.into_values() {
                    accumulate(&mut found, &variable, part)?;
                }
                vec![part]
            }
        };
        drop(gradient);
        for (input, part) in note.inputs.iter().zip(parts) {
            let Some(part) = part.filter(|_| input.track_op()) else {
                continue;
            };
            if made.contains(&input.id()) {
                let sum = match gradients.remove(&input.id()) {
                    Some(before) => sum(&before, &part)?,
                    None => part,
                };
                gradients.insert(input.id(), sum.detach());
            } else if input.is_variable() {
                accumulate(&mut found, input, part)?;
            } else {
                return Err(not_made(input.dims()));
            }
        }
    }
    let of_input = input.and_then(|id| gradients.remove(&id));
    Ok((found, of_input))
}

fn accumulate(found: &mut Found, variable: &Tensor, part: Tensor) -> Result<()> {
    let sum = match found.remove(&variable.id()) {
        Some((_, before)) => sum(&before, &part)?,
        None => part,
    };
    found.insert(variable.id(), (variable.clone(), sum.detach()));
    Ok(())
}

/// The records of `f` alone, and its result.
fn recorded(f: impl FnOnce() -> Result<Tensor>) -> Result<(Vec<Note>, Tensor)> {
    let tape = Tape::start();
    let y = f()?;
    Ok((tape.take(), y))
}

/// f(x), of which only x is kept for the gradient: the backward pass computes the rest again, with
/// the same results. Without a tape it is f(x).
///
/// `f` must give the same values both times, and depend on x and on variables alone.
pub fn recomputed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Result<Tensor> {
    if !TAPES.with_borrow(|tapes| matches!(tapes.last(), Some(Some(_)))) {
        return f(x);
    }
    TAPES.with_borrow_mut(|tapes| tapes.push(None));
    let y = f(&x.detach());
    TAPES.with_borrow_mut(Vec::pop);
    // candle's graph would keep every intermediate. A variable keeps none and is tracked.
    let y = Var::from_tensor(&y?.detach())?.into_inner();
    record(&[x], &y, Rule::Recompute(Box::new(f)));
    Ok(y)
}

/// The gradient that later operations have already passed to the first input of the operation whose
/// gradient is being computed. Whoever takes it must add it to its own gradient, in the same pass.
#[cfg(feature = "cuda")]
pub(super) fn take_reached() -> Option<Tensor> {
    REACHED.take()
}

fn not_made(dims: &[usize]) -> Error {
    Error::msg(format!(
        "a gradient reached a tensor {dims:?} that no operation on the tape made"
    ))
}

fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    super::add(&a.detach(), &b.detach())
}

/// Records an operation on the innermost tape, if there is one and the graph tracks the output.
pub(super) fn note(
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
) {
    record(inputs, output, Rule::Gradient(Box::new(backward)));
}

fn record(inputs: &[&Tensor], output: &Tensor, rule: Rule) {
    if !output.track_op() {
        return;
    }
    TAPES.with_borrow_mut(|tapes| {
        if let Some(Some(notes)) = tapes.last_mut() {
            notes.push(Note {
                inputs: inputs.iter().map(|&input| input.clone()).collect(),
                output: output.clone(),
                rule,
            });
        }
    });
}

/// `x` made contiguous.
pub(super) fn contiguous(x: &Tensor) -> Result<Tensor> {
    let y = x.contiguous()?;
    if y.id() != x.id() {
        note(&[x], &y, |_, _, grad| Ok(vec![Some(grad.clone())]));
    }
    Ok(y)
}

/// Applies `op` to contiguous `x`.
pub(crate) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Arc<Box<dyn CustomOp1 + Send + Sync>> = Arc::new(Box::new(op));
    let x = contiguous(x)?;
    let y = x.apply_op1_arc(op.clone())?;
    note(&[&x], &y, move |inputs, y, grad| {
        Ok(vec![op.bwd(&inputs[0], y, grad)?])
    });
    Ok(y)
}

/// Applies `op` to contiguous `a` and `b`.
pub(super) fn apply2(
    a: &Tensor,
    b: &Tensor,
    op: impl CustomOp2 + Send + Sync + 'static,
) -> Result<Tensor> {
    let op: Arc<Box<dyn CustomOp2 + Send + Sync>> = Arc::new(Box::new(op));
    let (a, b) = (contiguous(a)?, contiguous(b)?);
    let y = a.apply_op2_arc(&b, op.clone())?;
    note(&[&a, &b], &y, move |inputs, y, grad| {
        let (a, b) = op.bwd(&inputs[0], &inputs[1], y, grad)?;
        Ok(vec![a, b])
    });
    Ok(y)
}

/// Applies `op` to contiguous `a`, `b` and `c`.
pub(super) fn apply3(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    op: impl CustomOp3 + Send + Sync + 'static,
) -> Result<Tensor> {
    let op: Arc<Box<dyn CustomOp3 + Send + Sync>> = Arc::new(Box::new(op));
    let (a, b, c) = (contiguous(a)?, contiguous(b)?, contiguous(c)?);
    let y = a.apply_op3_arc(&b, &c, op.clone())?;
    note(&[&a, &b, &c], &y, move |inputs, y, grad| {
        let (a, b, c) = op.bwd(&inputs[0], &inputs[1], &inputs[2], y, grad)?;
        Ok(vec![a, b, c])
    });
    Ok(y)
}

/// A function in candle operations, cheap enough to be recomputed in the backward pass, where
/// candle gives its gradient.
pub fn plain<const N: usize>(
    inputs: [&Tensor; N],
    f: impl Fn([&Tensor; N]) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let y = f(inputs)?;
    note(&inputs, &y, move |inputs, _, grad| {
        let leaf = |x: &Tensor| Var::from_tensor(&x.detach());
        let leaves = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let again = f(std::array::from_fn(|i| leaves[i].as_tensor()))?;
        let mut store = (again * grad)?.sum_all()?.backward()?;
        Ok(leaves.iter().map(|leaf| store.remove(leaf)).collect())
    });
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, normal};
    use crate::ops::{add, linear, silu};

    /// x is used by three operations, w by two; ends in a scalar.
    fn tangled(x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let y = add(&silu(&linear(x, w, None)?)?, x)?;
        let z = add(&linear(&y, w, None)?, x)?;
        plain([&z], |[z]| z.sqr()?.mean_all())
    }

    #[test]
    fn the_tape_gives_the_gradients_of_candles_graph() -> Result<()> {
        let (x, w) = (normal(1, (5, 7)), normal(2, (7, 7)));
        let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let tape = Tape::start();
        let loss = tangled(&x, &w)?;
        let expected = loss.backward()?;
        let found = tape.backward(loss)?;
        for var in [&x, &w] {
            let [found, expected] = [&found, &expected].map(|s| s.get(var).expect("a gradient"));
            assert_close("gradient", found, expected, 1e-6);
        }
        Ok(())
    }

    /// Two recomputed functions in a row, the second within a third; all use w.
    #[test]
    fn recomputed_functions_give_the_same_gradients() -> Result<()> {
        let (x, w) = (normal(1, (5, 7)), normal(2, (7, 7)));
        let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let block = |w: &Var| {
            let w = w.as_tensor().clone();
            move |x: &Tensor| add(&silu(&linear(x, &w, None)?)?, x)
        };
        let run = |recompute: bool| -> Result<GradStore> {
            let f = block(&w);
            let twice = {
                let f = block(&w);
                move |x: &Tensor| {
                    let y = f(x)?;
                    match recompute {
                        true => recomputed(&y, f.clone()),
                        false => f(&y),
                    }
                }
            };
            let tape = Tape::start();
            let y = linear(&x, &w, None)?;
            let y = match recompute {
                true => recomputed(&recomputed(&y, f)?, twice)?,
                false => twice(&f(&y)?)?,
            };
            tape.backward(plain([&y], |[y]| y.sqr()?.mean_all())?)
        };
        let (kept, again) = (run(false)?, run(true)?);
        for var in [&x, &w] {
            let [kept, again] = [&kept, &again].map(|s| s.get(var).expect("a gradient"));
            let bits = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            assert_eq!(bits(kept)?, bits(again)?);
        }
        TAPES.with_borrow(|tapes| assert!(tapes.is_empty()));
        Ok(())
    }

    #[test]
    fn a_recomputed_function_keeps_only_its_input() -> Result<()> {
        let x = Var::from_tensor(&normal(1, 3))?;
        let calls = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = calls.clone();
        let tape = Tape::start();
        let y = recomputed(&silu(&x)?, move |x| {
            count.set(count.get() + 1);
            silu(&silu(x)?)
        })?;
        TAPES.with_borrow(|tapes| {
            let notes = tapes.last().and_then(Option::as_ref).map(Vec::len);
            assert_eq!(notes, Some(2));
        });
        tape.backward(silu(&y)?)?;
        assert_eq!(calls.get(), 2);
        assert_eq!(recomputed(&y, |x| Ok(x.clone()))?.id(), y.id());
        Ok(())
    }

    #[test]
    fn an_operation_that_was_not_noted_is_an_error() -> Result<()> {
        let x = Var::from_tensor(&normal(1, (5, 7)))?;
        let tape = Tape::start();
        let loss = tangled(&(x.as_tensor() * 2.0)?, &normal(2, (7, 7)))?;
        let error = tape.backward(loss).unwrap_err().to_string();
        assert!(error.contains("no operation on the tape made"), "{error}");
        Ok(())
    }

    #[test]
    fn a_loss_that_was_not_noted_is_an_error() -> Result<()> {
        let x = Var::from_tensor(&normal(1, (5, 7)))?;
        let tape = Tape::start();
        let loss = (tangled(&x, &normal(2, (7, 7)))? * 2.0)?;
        let error = tape.backward(loss).unwrap_err().to_string();
        assert!(error.contains("no operation on the tape made"), "{error}");
        Ok(())
    }

    #[test]
    fn tapes_nest_and_end() -> Result<()> {
        let x = Var::from_tensor(&normal(1, 3))?;
        let outer = Tape::start();
        let y = silu(&x)?;
        let inner = Tape::start();
        let at = Var::from_tensor(&y.detach())?;
        let slope = inner.backward(silu(&at)?)?;
        assert!(slope.get(&at).is_some() && slope.get(&x).is_none());
        drop(Tape::start());
        let found = outer.backward(silu(&y)?)?;
        assert!(found.get(&x).is_some());
        TAPES.with_borrow(|tapes| assert!(tapes.is_empty()));
        Ok(())
    }
}
