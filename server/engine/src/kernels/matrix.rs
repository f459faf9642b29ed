//! Weight matrices packed for the products, and several of them over one input.

use super::{
    isa::Isa,
    pack,
    pool::Pool,
    product::{self, Epilogue, Quantized},
    raw::{RawTensor, StoredType},
    shared::SharedMut,
};

/// Output columns of a panel: rows of the weight matrix that are computed together.
pub(crate) const PANEL: usize = 64;
/// Inputs that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Rows that one task computes at most: enough that reading the panel again for the next ones costs little.
const TASK_ROWS: usize = 192;

/// How a packed matrix holds its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackedFormat {
    F32,
    F16,
    BF16,
    /// A 16-bit scale per 32 inputs, and 8 bits per element.
    Int8,
    /// The same with 4 bits, less 8.
    Int4,
    /// A 16-bit scale and a 16-bit minimum per 32 inputs, and 4 bits per element.
    Int4Min,
}

impl PackedFormat {
    /// What a stored matrix becomes. 5- and 6-bit blocks become 8-bit ones, whose rounding adds less than a tenth
    /// to their own error.
    pub(crate) fn of(dtype: StoredType) -> Self {
        match dtype {
            StoredType::F32 => Self::F32,
            StoredType::F16 => Self::F16,
            StoredType::BF16 => Self::BF16,
            StoredType::Q4_0 => Self::Int4,
            StoredType::Q4_1 | StoredType::Q4K => Self::Int4Min,
            _ => Self::Int8,
        }
    }

    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bytes of a panel's step through the inputs: one input if dense, else a block of 32.
    pub(super) fn step_bytes(self) -> usize {
        match self {
            Self::F32 => PANEL * 4,
            Self::F16 | Self::BF16 => PANEL * 2,
            Self::Int8 => PANEL * (2 + BLOCK),
            Self::Int4 => PANEL * (2 + BLOCK / 2),
            Self::Int4Min => PANEL * (4 + BLOCK / 2),
        }
    }

    /// Of the inputs, how many a step covers.
    pub(super) fn step_inputs(self) -> usize {
        if self.is_dense() { 1 } else { BLOCK }
    }

    fn panel_bytes(self, columns: usize) -> usize {
        columns / self.step_inputs() * self.step_bytes()
    }
}

/// A cache line, so that vectors of them are aligned to one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// `(rows, columns)`: maps columns to rows.
pub(crate) struct PackedMatrix {
    rows: usize,
    columns: usize,
    format: PackedFormat,
    /// Panels of 64 rows one after the other; in each, steps through the columns: scales, minima, elements.
    data: Vec<Line>,
}

impl PackedMatrix {
    /// Bytes that [`PackedMatrix::pack`] will hold.
    pub(crate) fn bytes(dtype: StoredType, rows: usize, columns: usize) -> u64 {
        Self::bytes_as(PackedFormat::of(dtype), rows, columns)
    }

    pub(crate) fn bytes_as(format: PackedFormat, rows: usize, columns: usize) -> u64 {
        rows.div_ceil(PANEL) as u64 * format.panel_bytes(columns) as u64
    }

    /// Keeps the stored precision. An error says in words what is wrong with the shape.
    pub(crate) fn pack(raw: &RawTensor<'_>, pool: &Pool) -> Result<Self, String> {
        Self::quantize(raw, PackedFormat::of(raw.dtype), pool)
    }

    /// Rounds to `format`, by the rules of Q8_0 and Q4_0 where it has blocks.
    pub(crate) fn quantize(raw: &RawTensor<'_>, format: PackedFormat, pool: &Pool) -> Result<Self, String> {
        if !raw.columns.is_multiple_of(format.step_inputs()) {
            return Err(format!("{} columns are no whole number of blocks of {BLOCK}", raw.columns));
        }
        let panel = format.panel_bytes(raw.columns);
        let n = raw.rows.div_ceil(PANEL) * panel / 64;
        let mut data = vec![Line([0; 64]); n];
        let lines = SharedMut::new(&mut data);
        pool.run(raw.rows.div_ceil(PANEL), &|i| {
            // SAFETY: each task has the lines of its own panel.
            #[expect(unsafe_code, reason = "tasks write disjoint parts")]
            let lines = unsafe { lines.slice(i * panel / 64, panel / 64) };
            pack::panel(raw, format, i * PANEL, lines);
        });
        Ok(Self { rows: raw.rows, columns: raw.columns, format, data })
    }

    /// Row `i` in f32.
    pub(crate) fn row(&self, i: usize, out: &mut [f32]) {
        pack::unpack_row(self.format, self.panel(i / PANEL), i % PANEL, out);
    }

    pub(super) fn panel(&self, i: usize) -> &[Line] {
        let n = self.format.panel_bytes(self.columns) / 64;
        &self.data[i * n..(i + 1) * n]
    }
}

/// Several matrices over one input, as one product.
pub(crate) struct Linear {
    parts: Vec<PackedMatrix>,
    bias: Option<Vec<f32>>,
    columns: usize,
    rows: usize,
    /// For each panel: its part, its number in that, and the first output column.
    panels: Vec<(usize, usize, usize)>,
}

/// Memory that products use and hand on.
#[derive(Default)]
pub(crate) struct Scratch {
    quantized: Quantized,
}

impl Linear {
    /// An error says in words which matrices or biases do not fit together.
    pub(crate) fn new(parts: Vec<PackedMatrix>, bias: Option<Vec<f32>>) -> Result<Self, String> {
        let columns = parts.first().map_or(0, |part| part.columns);
        if parts.iter().any(|part| part.columns != columns) {
            return Err("matrices over one input differ in their columns".to_owned());
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != rows) {
            return Err(format!("a bias of {} for {rows} rows", bias.len()));
        }
        let mut panels = Vec::new();
        let mut first = 0;
        for (i, part) in parts.iter().enumerate() {
            panels.extend((0..part.rows.div_ceil(PANEL)).map(|panel| (i, panel, first + panel * PANEL)));
            first += part.rows;
        }
        Ok(Self { parts, bias, columns, rows, panels })
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.data.len() as u64 * 64).sum()
    }

    /// Row `i` of the matrices one after the other, in f32.
    pub(crate) fn row(&self, mut i: usize, out: &mut [f32]) {
        for part in &self.parts {
            match i < part.rows {
                true => return part.row(i, out),
                false => i -= part.rows,
            }
        }
    }

    /// `y = x · Wᵀ + bias`, with `x` `(n, columns)` and `y` `(n, rows)`.
    pub(crate) fn apply(&self, isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        self.run(isa, pool, x, y, scratch, false);
    }

    /// `y += x · Wᵀ + bias`.
    pub(crate) fn apply_add(&self, isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        self.run(isa, pool, x, y, scratch, true);
    }

    fn run(&self, isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32], scratch: &mut Scratch, add: bool) {
        if self.columns == 0 || self.rows == 0 {
            return;
        }
        let n = x.len() / self.columns;
        assert!(x.len() == n * self.columns && y.len() == n * self.rows, "the shapes of a product");
        let quantized = &mut scratch.quantized;
        if self.parts.iter().any(|part| !part.format.is_dense()) {
            quantized.fill(isa, pool, x, self.columns);
        }
        let quantized = &*quantized;
        let pieces = n.div_ceil(TASK_ROWS);
        let y = SharedMut::new(y);
        pool.run(self.panels.len() * pieces, &|task| {
            let (part, panel, first) = self.panels[task / pieces];
            let part = &self.parts[part];
            let from = task % pieces * TASK_ROWS;
            let epilogue = Epilogue {
                y: &y,
                stride: self.rows,
                first,
                n: (part.rows - panel * PANEL).min(PANEL),
                bias: self.bias.as_deref(),
                add,
            };
            let rows = from..n.min(from + TASK_ROWS);
            match part.format.is_dense() {
                true => product::dense(isa, part.format, part.panel(panel), x, self.columns, rows, &epilogue),
                false => product::blocks(isa, part.format, part.panel(panel), quantized, rows, &epilogue),
            }
        });
    }
}
