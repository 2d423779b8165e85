//! Matmuls: row-major C[m,n] = α·op(A)·op(B) + β·C, bf16 in, f32 sums, bf16 or f32 out. By
//! cuBLASLt, and on sm_90 by a custom kernel ([`super::cuda`]) where that is faster.
//!
//! The algorithm of a shape is picked once: of those that give the same bits as the library's
//! first, on a trial's operands, the fastest on this GPU. So which one it is may change from run to
//! run, and the results do not. The matmuls of a step of depth 12 take 49.4 ms one by one on an
//! H100, by the library's algorithms alone, instead of 54.7; a whole step gains 1 to 2 of its 85
//! ms, because there the GPU is at its power limit.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of_val};
use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{CudaDevice, Result, bail};
use half::bf16;

use super::cuda::{run_many, serves_many};
use crate::ops::cuda::{Buffer, Element, Gpu, View, ViewMut, launch};

const WORKSPACE: usize = 32 << 20;
/// Algorithms that the library is asked for, and the FLOP of a matmul from which on it pays to time
/// them.
const CANDIDATES: usize = 8;
const TIMED: f64 = 1e8;
/// Times a candidate is timed, two runs each.
const ROUNDS: usize = 3;
/// Blocks of the kernels that fill and compare.
const BLOCKS: u32 = 1024;

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    None,
    /// C += bias, one value a column; the bias has C's element type.
    Bias,
}

/// A product's shape and types: everything an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// A is stored [k,m].
    pub transpose_a: bool,
    /// B is stored [n,k], as a linear layer's weight.
    pub transpose_b: bool,
    /// C is f32; bf16 otherwise.
    pub f32_out: bool,
    /// β = 1 instead of 0.
    pub accumulate: bool,
    pub epilogue: Epilogue,
    pub strides: Strides,
}

/// Elements from one row to the next of the operands as stored; 0: the rows lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Strides {
    pub a: usize,
    pub b: usize,
    pub c: usize,
}

impl Product {
    /// y[rows,out] = x[rows,in]·weight[out,in]ᵀ
    pub fn forward(rows: usize, input: usize, output: usize) -> Self {
        Self {
            m: rows,
            n: output,
            k: input,
            transpose_a: false,
            transpose_b: true,
            f32_out: false,
            accumulate: false,
            epilogue: Epilogue::None,
            strides: Strides::default(),
        }
    }

    /// dx[rows,in] = dy[rows,out]·weight[out,in]
    pub fn input_gradient(rows: usize, input: usize, output: usize) -> Self {
        Self {
            m: rows,
            n: input,
            k: output,
            transpose_b: false,
            ..Self::forward(rows, input, output)
        }
    }

    /// dweight[out,in] = dy[rows,out]ᵀ·x[rows,in], f32
    pub fn weight_gradient(rows: usize, input: usize, output: usize) -> Self {
        Self {
            m: output,
            n: input,
            k: rows,
            transpose_a: true,
            transpose_b: false,
            f32_out: true,
            ..Self::forward(rows, input, output)
        }
    }

    /// Whether a custom kernel supports it: bf16 rows times weights, to bf16, of enough rows.
    fn has_custom_kernel(&self, gpu: &Gpu) -> bool {
        let plain = !self.f32_out && !self.accumulate && self.epilogue == Epilogue::None;
        let together = self.strides == Strides::default();
        plain && together && !self.transpose_a && serves_many(gpu, self.m, self.n)
    }

    /// Rows, columns and the stride of A, B and C as stored.
    fn stored(&self) -> [[usize; 3]; 3] {
        let shapes = [
            (self.transpose_a, self.m, self.k, self.strides.a),
            (self.transpose_b, self.k, self.n, self.strides.b),
            (false, self.m, self.n, self.strides.c),
        ];
        shapes.map(|(transposed, rows, columns, stride)| {
            let (rows, columns) = match transposed {
                true => (columns, rows),
                false => (rows, columns),
            };
            [rows, columns, if stride == 0 { columns } else { stride }]
        })
    }

    /// Elements from the first to the last of A, B and C.
    fn reach(&self) -> [usize; 3] {
        self.stored()
            .map(|[rows, columns, stride]| (rows - 1) * stride + columns)
    }

    pub fn flop(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// The library's handle, its workspace, and the algorithms chosen so far.
pub struct Matmul {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    plans: Mutex<HashMap<Product, Plan>>,
}

/// Which implementation runs a matmul.
#[derive(Clone, Copy)]
enum Algorithm {
    Library(sys::cublasLtMatmulAlgo_t),
    Custom,
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    /// Of the library's first and second operand and its result: column-major, so B, A and C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: Algorithm,
}

// SAFETY: cuBLASLt's handle and descriptors may be used from any thread; the plans are behind a
// lock.
unsafe impl Send for Matmul {}
// SAFETY: as above.
unsafe impl Sync for Matmul {}

impl Matmul {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let workspace = stream
            .alloc_zeros::<u8>(WORKSPACE)
            .map_err(candle_core::Error::wrap)?;
        Ok(Self {
            handle: result::create_handle().map_err(candle_core::Error::wrap)?,
            stream,
            workspace,
            plans: Mutex::default(),
        })
    }

    /// C = op(A)·op(B), plus `bias` [n] if the epilogue adds one.
    ///
    /// Panics: an operand that is shorter than the product's shape says; C of another element type;
    /// a bias that the epilogue does not add, or none that it does.
    pub fn run<C: Element>(
        &self,
        gpu: &Gpu,
        product: &Product,
        a: View<bf16>,
        b: View<bf16>,
        c: ViewMut<C>,
        bias: Option<View<C>>,
    ) -> Result<()> {
        assert_eq!(
            C::NAME,
            if product.f32_out { "f32" } else { "bf16" },
            "the result of {product:?}"
        );
        assert_eq!(
            bias.is_some(),
            product.epilogue == Epilogue::Bias,
            "the bias of {product:?}"
        );
        let [of_a, of_b, of_c] = product.reach();
        let operands = [
            a.first(of_a).address(),
            b.first(of_b).address(),
            c.first(of_c).address(),
            bias.map_or(0, |bias| bias.first(product.n).address()),
        ];
        let mut plans = self
            .plans
            .lock()
            .expect("no thread panics while it holds this lock");
        if !plans.contains_key(product) {
            plans.insert(*product, self.plan(gpu, product)?);
        }
        let plan = &plans[product];
        // SAFETY: the operands reach as far as the product's shape says.
        unsafe { self.launch(gpu, product, plan, &plan.algorithm, operands) }
    }

    /// # Safety
    /// The addresses of A, B, C and the bias (if one is added) reach as far as the product's shape
    /// says, on this device; `plan` is the product's and `algorithm` one of its candidates.
    unsafe fn launch(
        &self,
        gpu: &Gpu,
        product: &Product,
        plan: &Plan,
        algorithm: &Algorithm,
        [a, b, c, bias]: [u64; 4],
    ) -> Result<()> {
        let algorithm = match algorithm {
            Algorithm::Library(algorithm) => algorithm,
            Algorithm::Custom => {
                let sizes = [product.m, product.k, product.n];
                // SAFETY: the caller's promise, for bf16 operands whose rows lie side by side.
                return unsafe { run_many(gpu, sizes, !product.transpose_b, [a, b, c], None) };
            }
        };
        let (alpha, beta) = (1f32, if product.accumulate { 1f32 } else { 0f32 });
        let (workspace, _guard) = self.workspace.device_ptr(&self.stream);
        // SAFETY: the descriptors live as long as the plan; the addresses are the caller's promise.
        unsafe {
            if product.epilogue != Epilogue::None {
                set(
                    plan.desc,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    &bias,
                )?;
            }
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b as *const c_void,
                plan.layouts[0],
                a as *const c_void,
                plan.layouts[1],
                c as *const c_void,
                plan.layouts[2],
                c as *mut c_void,
                plan.layouts[2],
                algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(|e| candle_core::Error::Msg(format!("cuBLASLt on {product:?}: {e}")))
    }

    /// The fastest of the candidates that give the first one's bits, on operands of its own: those
    /// of a first step may be zeros.
    ///
    /// If there is no memory for the trial it is the first: the results are the same.
    fn fastest(
        &self,
        gpu: &Gpu,
        p: &Product,
        plan: &Plan,
        candidates: &[Algorithm],
    ) -> Result<Algorithm> {
        let [a, b, c] = p.stored().map(|[rows, _, stride]| rows * stride);
        let operand = a.max(b).max(2 * p.n); // the bias may be f32
        let bytes = c * if p.f32_out { 4 } else { 2 };
        let vectors = bytes.div_ceil(16);
        let out = || Buffer::<u32>::zeros(gpu, 4 * vectors);
        let (Ok(operands), Ok(expected), Ok(found)) =
            (Buffer::<bf16>::zeros(gpu, operand), out(), out())
        else {
            return Ok(candidates[0]);
        };
        fill_operand(gpu, operands.view_mut())?;
        let x = operands.view().address();
        // SAFETY: operands and results are as large as the product's.
        let run = |i: usize, to: &Buffer<u32>| unsafe {
            self.launch(
                gpu,
                p,
                plan,
                &candidates[i],
                [x, x, to.view_mut().address(), x],
            )
        };
        run(0, &expected)?;
        let mut same = vec![0];
        for i in 1..candidates.len() {
            let found = match p.accumulate {
                true => &out()?, // what is added to must be zeros
                false => &found,
            };
            let bits = Buffer::<u32>::zeros(gpu, 1)?;
            let ran = run(i, found);
            count_differing(gpu, expected.view(), found.view(), bits.view_mut())?;
            if ran.is_ok() && bits.read()?[0] == 0 {
                same.push(i);
            }
        }
        let event = || {
            self.stream
                .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(candle_core::Error::wrap)
        };
        let mut times = vec![[f32::INFINITY; ROUNDS]; same.len()];
        for round in 0..ROUNDS {
            for (&i, times) in same.iter().zip(&mut times) {
                let begin = event()?;
                run(i, &found)?;
                run(i, &found)?;
                let end = event()?;
                times[round] = begin.elapsed_ms(&end).map_err(candle_core::Error::wrap)?;
            }
        }
        let median = |times: &[f32; ROUNDS]| {
            let mut sorted = *times;
            sorted.sort_by(f32::total_cmp);
            sorted[ROUNDS / 2]
        };
        let fastest = same
            .iter()
            .zip(&times)
            .min_by(|a, b| median(a.1).total_cmp(&median(b.1)));
        Ok(candidates[fastest.map_or(0, |(&i, _)| i)])
    }

    fn plan(&self, gpu: &Gpu, p: &Product) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (half, full) = (
            sys::cudaDataType_t::CUDA_R_16BF,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let failed =
            |e| candle_core::Error::Msg(format!("cuBLASLt has no algorithm for {p:?}: {e}"));
        let desc = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, full)
            .map_err(failed)?;
        // Column-major, a row-major [r,c] matrix is [c,r]: Cᵀ[n,m] = op(B)ᵀ·op(A)ᵀ.
        let first = if p.transpose_b {
            CUBLAS_OP_T
        } else {
            CUBLAS_OP_N
        };
        let second = if p.transpose_a {
            CUBLAS_OP_T
        } else {
            CUBLAS_OP_N
        };
        let out = if p.f32_out { full } else { half };
        let layout = |data, [rows, columns, stride]: [usize; 3]| {
            result::create_matrix_layout(data, columns as u64, rows as u64, stride as i64)
                .map_err(failed)
        };
        let [a, b, c] = p.stored();
        let layouts = [layout(half, b)?, layout(half, a)?, layout(out, c)?];
        // SAFETY: the descriptor and the preference were just made; each value has its attribute's
        // type.
        unsafe {
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &first)?;
            set(desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &second)?;
            if p.epilogue == Epilogue::Bias {
                let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(desc, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias)?;
                set(desc, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
            }
            let workspace = WORKSPACE;
            let preference = result::create_matmul_pref().map_err(failed)?;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )
            .map_err(failed)?;
            if p.strides != Strides::default() {
                // Parts of rows begin where their neighbours end, at 16 bytes instead of the
                // library's 256.
                use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
                for attribute in [
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                ] {
                    let bytes = 16u32;
                    result::set_matmul_pref_attribute(
                        preference,
                        attribute,
                        (&raw const bytes).cast(),
                        size_of_val(&bytes),
                    )
                    .map_err(failed)?;
                }
            }
            let [b, a, c] = layouts;
            let mut found: [MaybeUninit<sys::cublasLtMatmulHeuristicResult_t>; CANDIDATES] =
                [MaybeUninit::zeroed(); CANDIDATES];
            let mut count = 0;
            let asked = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                b,
                a,
                c,
                c,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
            .result();
            result::destroy_matmul_pref(preference).map_err(failed)?;
            asked.map_err(failed)?;
            let mut candidates: Vec<_> = found[..count as usize]
                .iter()
                .map(|found| Algorithm::Library(found.assume_init_ref().algo))
                .collect();
            let Some(&algorithm) = candidates.first() else {
                bail!("cuBLASLt has no algorithm for {p:?}");
            };
            let mut plan = Plan {
                desc,
                layouts,
                algorithm,
            };
            if p.has_custom_kernel(gpu) {
                candidates.push(Algorithm::Custom);
            }
            if candidates.len() > 1 && p.flop() >= TIMED {
                plan.algorithm = self.fastest(gpu, p, &plan, &candidates)?;
            }
            Ok(plan)
        }
    }
}

impl Gpu {
    /// Matmuls on this device, made ready at the first call.
    ///
    /// Errors: cuBLASLt cannot be started.
    pub fn matmul(&self) -> Result<Arc<Matmul>> {
        self.kept(|gpu| Matmul::new(gpu.device()))
    }
}

/// Fills with values of about a normal's size.
pub fn fill_operand(gpu: &Gpu, to: ViewMut<bf16>) -> Result<()> {
    let count = to.len() as i64;
    // SAFETY: the kernel's arguments, of a view's length.
    unsafe { launch!(gpu, "product", "fill_operand", (BLOCKS, 1, 1), 256, 0; to, count) }
}

/// Adds to `differing` [1] how many vectors of 16 bytes differ between two lists of as many words.
pub fn count_differing(
    gpu: &Gpu,
    a: View<u32>,
    b: View<u32>,
    differing: ViewMut<u32>,
) -> Result<()> {
    assert!(
        a.len() == b.len() && a.len().is_multiple_of(4),
        "{} and {} words",
        a.len(),
        b.len()
    );
    let count = (a.len() / 4) as i64;
    // SAFETY: the kernel's arguments, of the views' lengths.
    unsafe {
        launch!(gpu, "product", "count_differing", (BLOCKS, 1, 1), 256, 0;
            a, b, count, differing.first(1))
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        let plans = self
            .plans
            .get_mut()
            .expect("no thread panics while it holds this lock");
        for plan in plans.values() {
            // SAFETY: made by `plan`, destroyed once. A failure here leaks a few bytes at the end
            // of a run.
            unsafe {
                let _ = result::destroy_matmul_desc(plan.desc);
                for layout in plan.layouts {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            let _ = result::destroy_handle(self.handle);
        }
    }
}

/// # Safety
/// `desc` is alive and `T` is the attribute's type.
unsafe fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        result::set_matmul_desc_attribute(
            desc,
            attribute,
            (&raw const *value).cast(),
            size_of_val(value),
        )
    }
    .map_err(candle_core::Error::wrap)
}
