use std::cell::Cell;
use std::rc::Rc;

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
fn gradients_begin_at_several_results() -> Result<()> {
    let (x, w) = (normal(1, (5, 7)), normal(2, (7, 7)));
    let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
    let upstream = normal(3, (5, 7));
    let made = || -> Result<(Tensor, Tensor)> {
        let y = silu(&linear(&x, &w, None)?)?;
        let error = plain([&y], |[y]| y.sqr()?.mean_all())?;
        Ok((add(&y, &x)?, error))
    };
    let (y, error) = made()?;
    let expected = ((y * &upstream)?.sum_all()? + (error * 0.5)?)?.backward()?;
    let tape = Tape::start();
    let (y, error) = made()?;
    let half = Tensor::new(0.5f32, error.device())?;
    let found = tape.backward_from(vec![(y, upstream), (error, half)])?;
    for var in [&x, &w] {
        let [found, expected] = [&found, &expected].map(|s| s.get(var).expect("a gradient"));
        assert_close("gradient", found, expected, 1e-6);
    }
    Ok(())
}

#[test]
fn a_record_is_walked_again_and_computes_what_is_asked() -> Result<()> {
    let (x, w) = (normal(1, (5, 7)), normal(2, (7, 7)));
    let (x, w) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
    let tape = Tape::start();
    let loss = tangled(&x, &w)?;
    let expected = loss.backward()?;
    let record = tape.stop();
    let from = [(loss.clone(), loss.ones_like()?)];
    for (asked, other) in [(&x, &w), (&w, &x)] {
        let found = record.backward_from(&from, [asked])?;
        let [found_there, expected] = [&found, &expected].map(|s| s.get(asked));
        let both = found_there.zip(expected).expect("both gradients");
        assert_close("gradient", both.0, both.1, 1e-6);
        assert!(found.get(other).is_none());
    }
    TAPES.with_borrow(|tapes| assert!(tapes.is_empty()));
    Ok(())
}

/// y = max(0, x), which masks its gradient unless that has passed the ReLU already; counts masks.
fn rectified(x: &Tensor, masks: &Rc<Cell<u32>>) -> Result<Tensor> {
    let (y, masks) = (x.relu()?, masks.clone());
    note(&[x], &y, move |_, y, dy| {
        if has_passed_slope() {
            return Ok(vec![Some(dy.clone())]);
        }
        masks.set(masks.get() + 1);
        Ok(vec![Some((dy * y.gt(0f32)?.to_dtype(dy.dtype())?)?)])
    });
    note_slope(&y, 0.0);
    Ok(y)
}

/// 2·x, whose gradient takes what has reached x and passes the ReLU before it.
fn passing(x: &Tensor, masks: &Rc<Cell<u32>>) -> Result<Tensor> {
    let (y, masks) = ((x * 2.0)?, masks.clone());
    note(&[x], &y, move |inputs, _, dy| {
        let mut dx = (dy * 2.0)?;
        if let Some(reached) = take_reached() {
            dx = (dx + reached)?;
        }
        if slope_of_input() == Some(0.0) {
            masks.set(masks.get() + 1);
            dx = (&dx * inputs[0].gt(0f32)?.to_dtype(dx.dtype())?)?;
            input_has_passed_slope();
        }
        Ok(vec![Some(dx)])
    });
    Ok(y)
}

#[test]
fn a_gradient_passes_the_relu_before_it_once_and_wholly() -> Result<()> {
    let plainly = |x: &Tensor| plain([x], |[x]| x * 3.0);
    let end = |a: &Tensor, b: &Tensor| plain([a, b], |[a, b]| (a + b)?.sqr()?.sum_all());
    let x = Var::from_tensor(&normal(1, (5, 7)))?;
    // The gradient is masked once, but where a part comes after that has not passed.
    for (order, expected) in [
        ("passing", 1),
        ("plain", 1),
        ("passing first", 1),
        ("last", 2),
    ] {
        let masks = Rc::new(Cell::new(0));
        let tape = Tape::start();
        let y = rectified(&x, &masks)?;
        let (a, b, factor) = match order {
            "passing" => (passing(&y, &masks)?, y.zeros_like()?.detach(), 2.0),
            "plain" => (plainly(&y)?, y.zeros_like()?.detach(), 3.0),
            "passing first" => (passing(&y, &masks)?, plainly(&y)?, 5.0),
            _ => (plainly(&y)?, passing(&y, &masks)?, 5.0),
        };
        let found = tape.backward(end(&a, &b)?)?;
        let wanted = (x.as_detached_tensor().relu()? * (2.0 * factor * factor))?;
        assert_close(order, found.get(&x).expect("a gradient"), &wanted, 1e-6);
        assert_eq!(masks.get(), expected, "{order}");
    }
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
