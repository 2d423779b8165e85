//! Reverse-mode differentiation over this module's operations, instead of candle's own backward.
//!
//! candle adds every gradient, even a tensor's only one, to a tensor of zeros: three serial passes
//! over memory per operation, a tenth of a small training step. A [`Tape`] records each operation
//! of its thread while it exists. [`Tape::backward`] walks back over the records, takes a first
//! gradient as it is, and frees what it has walked.
//!
//! candle's graph is still built and stays valid, except through recomputed functions and what is
//! fused into a convolution: both use the gradient of an operation's CustomOp.
//! A gradient must reach a recorded result or a variable; anything else is an error, so that no
//! gradient is silently lost. A forward pass that serves two losses is kept as a [`Record`].

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Error, Result, Tensor, TensorId, Var};

#[cfg(any(test, feature = "cuda"))]
use super::column_sums::known::Remembering;

/// (inputs, output, gradient of the output) → gradients of the inputs.
type Backward = Box<dyn Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>>;

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
    /// Set if the operation ends with a leaky ReLU: its slope, 0 for a ReLU.
    slope: Option<f32>,
}

/// Gradients found for variables.
type Found = HashMap<TensorId, (Tensor, Tensor)>;

/// What an operation whose gradient is being computed may know and say about the gradient of its
/// first input, so that a pass over memory does more than one thing.
#[derive(Default)]
#[cfg_attr(
    not(any(feature = "cuda", test)),
    allow(dead_code, reason = "only a GPU's operations and the tests ask")
)]
struct Passing {
    /// The gradient that has already reached the first input.
    reached: Option<Tensor>,
    /// Of the leaky ReLU that made the first input, if one did.
    slope: Option<f32>,
    /// Whether the gradient that the operation is given has already passed the leaky ReLU that the
    /// operation ends with.
    passed: bool,
    /// Set by the operation if it has passed its first input's gradient through that one's ReLU.
    passes: bool,
}

thread_local! {
    static PASSING: RefCell<Passing> = RefCell::default();
    /// The tapes of this thread, the innermost last; None where nothing is recorded.
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
        let one = loss.ones_like()?;
        self.backward_from(vec![(loss, one)])
    }

    /// Like [`Tape::backward`], from several results, each with the gradient that begins there.
    pub fn backward_from(self, results: Vec<(Tensor, Tensor)>) -> Result<GradStore> {
        #[cfg(any(test, feature = "cuda"))]
        let _remembering = Remembering::start();
        let (found, _) = walk(self.stop().notes, results, None)?;
        Ok(stored(found))
    }

    /// Ends the recording, and keeps it.
    pub fn stop(self) -> Record {
        let notes = TAPES.with_borrow_mut(|tapes| {
            tapes.truncate(self.place + 1);
            tapes[self.place].take().unwrap_or_default()
        });
        Record { notes }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        // The records are dropped outside, because dropping a tensor may take long.
        let notes = TAPES.with_borrow_mut(|tapes| tapes.split_off(self.place.min(tapes.len())));
        drop(notes);
    }
}

/// What a [`Tape`] has recorded: one forward pass, for more than one backward pass.
pub struct Record {
    notes: Vec<Note>,
}

impl Record {
    /// The gradients of the variables `of` alone, from several results, each with the gradient that
    /// begins there; others are not computed, and nothing is freed.
    pub fn backward_from<'a>(
        &self,
        results: &[(Tensor, Tensor)],
        of: impl IntoIterator<Item = &'a Var>,
    ) -> Result<GradStore> {
        let of: HashSet<TensorId> = of.into_iter().map(|var| var.id()).collect();
        let mut reached = of.clone();
        for note in &self.notes {
            // What a recomputed function uses is not known before.
            let recomputed = matches!(note.rule, Rule::Recompute(_));
            if recomputed || note.inputs.iter().any(|x| reached.contains(&x.id())) {
                reached.insert(note.output.id());
            }
        }
        #[cfg(any(test, feature = "cuda"))]
        let _remembering = Remembering::start();
        let mut walk = Walk::new(&self.notes, results, None)?;
        for note in self.notes.iter().rev() {
            // An operation computes the gradients of the inputs that a graph tracks.
            let of_interest = |x: &Tensor| match reached.contains(&x.id()) {
                true => x.clone(),
                false => x.detach(),
            };
            let inputs: Vec<Tensor> = note.inputs.iter().map(of_interest).collect();
            walk.pass(note, &inputs)?;
        }
        let mut found = walk.found;
        found.retain(|id, _| of.contains(id));
        Ok(stored(found))
    }
}

fn stored(found: Found) -> GradStore {
    let mut store = GradStore::default();
    for (variable, gradient) in found.into_values() {
        store.insert(&variable, gradient);
    }
    store
}

/// Walks back from results, each with its gradient, and frees what it has walked: the gradients of
/// the variables, and that of `input`, which no record made.
fn walk(
    mut notes: Vec<Note>,
    results: Vec<(Tensor, Tensor)>,
    input: Option<TensorId>,
) -> Result<(Found, Option<Tensor>)> {
    let mut walk = Walk::new(&notes, &results, input)?;
    drop(results);
    while let Some(note) = notes.pop() {
        walk.pass(&note, &note.inputs)?;
    }
    let of_input = input.and_then(|id| walk.gradients.remove(&id));
    Ok((walk.found, of_input))
}

/// A backward pass, from the last note to the first.
struct Walk {
    /// The results of notes that are still to come, and the input that no note made.
    made: HashSet<TensorId>,
    /// Of such results.
    gradients: HashMap<TensorId, Tensor>,
    /// Results of a leaky ReLU, and its slope.
    slopes: HashMap<TensorId, f32>,
    /// Those of them whose gradients have passed it already.
    passed: HashSet<TensorId>,
    found: Found,
}

impl Walk {
    fn new(notes: &[Note], results: &[(Tensor, Tensor)], input: Option<TensorId>) -> Result<Self> {
        let slope = |note: &Note| note.slope.map(|slope| (note.output.id(), slope));
        let mut walk = Self {
            made: notes.iter().map(|note| note.output.id()).collect(),
            gradients: HashMap::new(),
            slopes: notes.iter().filter_map(slope).collect(),
            passed: HashSet::new(),
            found: Found::new(),
        };
        for (result, gradient) in results {
            if !walk.made.contains(&result.id()) {
                return Err(not_made(result.dims()));
            }
            if result.shape() != gradient.shape() {
                return Err(Error::msg(format!(
                    "a result of shape {:?} with a gradient of shape {:?}",
                    result.shape(),
                    gradient.shape()
                )));
            }
            walk.add(result.id(), gradient, false)?;
        }
        walk.made.extend(input);
        Ok(walk)
    }

    /// Adds a part of a gradient, which has or has not `passed` the leaky ReLU before it.
    fn add(&mut self, to: TensorId, part: &Tensor, passed: bool) -> Result<()> {
        let (sum, passed) = match self.gradients.remove(&to) {
            Some(before) => (sum(&before, part)?, passed && self.passed.contains(&to)),
            None => (part.detach(), passed),
        };
        self.gradients.insert(to, sum);
        match passed {
            true => self.passed.insert(to),
            false => self.passed.remove(&to),
        };
        Ok(())
    }

    /// Passes the gradient of a note's result on to `inputs`, its own or detached ones.
    fn pass(&mut self, note: &Note, inputs: &[Tensor]) -> Result<()> {
        let output = note.output.id();
        self.made.remove(&output);
        let Some(gradient) = self.gradients.remove(&output) else {
            return Ok(());
        };
        let (parts, passes) = match &note.rule {
            Rule::Gradient(_) if !inputs.iter().any(Tensor::track_op) => return Ok(()),
            Rule::Gradient(backward) => {
                let first = inputs.first().map(Tensor::id);
                PASSING.set(Passing {
                    reached: first.and_then(|id| self.gradients.remove(&id)),
                    slope: first.and_then(|id| self.slopes.get(&id).copied()),
                    passed: self.passed.remove(&output),
                    passes: false,
                });
                let parts = backward(inputs, &note.output, &gradient);
                let after = PASSING.take();
                if let (Some(id), Some(reached)) = (first, after.reached) {
                    self.gradients.insert(id, reached);
                }
                (parts?, after.passes)
            }
            Rule::Recompute(f) => {
                let x = Var::from_tensor(&note.inputs[0].detach())?;
                let (notes, y) = recorded(|| f(&x))?;
                let (inner, part) = walk(notes, vec![(y, gradient.clone())], Some(x.id()))?;
                for (variable, part) in inner.into_values() {
                    accumulate(&mut self.found, &variable, part)?;
                }
                (vec![part], false)
            }
        };
        drop(gradient);
        for (i, (input, part)) in inputs.iter().zip(parts).enumerate() {
            let Some(part) = part.filter(|_| input.track_op()) else {
                continue;
            };
            if self.made.contains(&input.id()) {
                self.add(input.id(), &part, passes && i == 0)?;
            } else if input.is_variable() {
                accumulate(&mut self.found, input, part)?;
            } else {
                return Err(not_made(input.dims()));
            }
        }
        Ok(())
    }
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
    Ok((tape.stop().notes, y))
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
#[cfg(any(feature = "cuda", test))]
pub(super) fn take_reached() -> Option<Tensor> {
    PASSING.with_borrow_mut(|passing| passing.reached.take())
}

/// The slope of the leaky ReLU that made the first input of the operation whose gradient is being
/// computed.
#[cfg(any(feature = "cuda", test))]
pub(super) fn slope_of_input() -> Option<f32> {
    PASSING.with_borrow(|passing| passing.slope)
}

/// Says that the operation has passed the gradient of this input through that leaky ReLU: its own
/// part and what it has taken by [`take_reached`] are multiplied by the slope where the input is
/// not positive.
#[cfg(any(feature = "cuda", test))]
pub(super) fn input_has_passed_slope() {
    PASSING.with_borrow_mut(|passing| passing.passes = true);
}

/// Whether the gradient of an operation that ends with a leaky ReLU has passed it already.
#[cfg(any(feature = "cuda", test))]
pub(super) fn has_passed_slope() -> bool {
    PASSING.with_borrow(|passing| passing.passed)
}

/// Says that the operation recorded last, with the result `output`, ends with a leaky ReLU.
#[cfg(any(feature = "cuda", test))]
pub(super) fn note_slope(output: &Tensor, slope: f32) {
    TAPES.with_borrow_mut(|tapes| {
        if let Some(Some(notes)) = tapes.last_mut()
            && let Some(note) = notes.last_mut()
            && note.output.id() == output.id()
        {
            note.slope = Some(slope);
        }
    });
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
    backward: impl Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
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
                slope: None,
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
