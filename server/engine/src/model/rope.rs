//! Rotary position embedding: frequencies, and tables for the positions of one step.

/// Frequencies of the rotations. All arithmetic is f32, as in the reference implementation.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub(crate) inverse_frequencies: Vec<f32>,
    /// Of cosines and sines.
    magnitude: f32,
    /// What is computed with instead if more than so many positions are served.
    long: Option<(u32, Vec<f32>)>,
    /// Pairs are neighbours (GGUF's order of weights) instead of halves.
    pub(crate) interleaved: bool,
}

/// LongRoPE (<https://arxiv.org/abs/2402.13753>): divisors of each frequency, one set for the context that the model was
/// first trained on and one for longer ones.
#[derive(Clone, Debug)]
pub(crate) struct LongRope {
    pub(crate) original_context: u32,
    pub(crate) magnitude: f32,
    pub(crate) short: Vec<f32>,
    pub(crate) long: Vec<f32>,
}

/// How frequencies are stretched for contexts longer than the model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    Linear { factor: f32 },
    Llama3 { factor: f32, low_freq_factor: f32, high_freq_factor: f32, original_context: f32 },
}

impl Rope {
    pub(crate) fn new(rotated: usize, theta: f32, scaling: Scaling, interleaved: bool) -> Self {
        let inverse_frequencies = (0..rotated / 2)
            .map(|i| 1.0 / theta.powf((2 * i) as f32 / rotated as f32))
            .map(|frequency| scaling.apply(frequency))
            .collect();
        Self { inverse_frequencies, magnitude: 1.0, long: None, interleaved }
    }

    /// Divides frequencies; says in words what cannot be.
    pub(crate) fn divide(&mut self, divisors: &[f32]) -> Result<(), String> {
        self.inverse_frequencies = self.divided(divisors)?;
        Ok(())
    }

    /// Both sets, until [`Self::serve_context`] says which. Says in words what cannot be.
    pub(crate) fn with_long(mut self, stretch: &LongRope) -> Result<Self, String> {
        let LongRope { original_context, magnitude, .. } = *stretch;
        if !(magnitude.is_finite() && magnitude > 0.0) || original_context == 0 {
            return Err(format!("a magnitude of {magnitude} from an original context of {original_context}"));
        }
        let long = self.divided(&stretch.long).map_err(|e| format!("long factors: {e}"))?;
        self.inverse_frequencies = self.divided(&stretch.short).map_err(|e| format!("short factors: {e}"))?;
        self.long = Some((original_context, long));
        self.magnitude = magnitude;
        Ok(self)
    }

    fn divided(&self, divisors: &[f32]) -> Result<Vec<f32>, String> {
        let frequencies = &self.inverse_frequencies;
        if divisors.len() != frequencies.len() {
            return Err(format!("{} divisors for {} frequencies", divisors.len(), frequencies.len()));
        }
        if let Some(divisor) = divisors.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return Err(format!("a frequency is divided by {divisor}"));
        }
        Ok(frequencies.iter().zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect())
    }

    /// Fixes the frequencies for the positions below `context`, as llama.cpp does. The reference implementation changes
    /// them once a sequence outgrows the original context; the keys that are stored by then were rotated by the others.
    pub(super) fn serve_context(&mut self, context: u32) {
        if let Some((original_context, long)) = self.long.take()
            && context > original_context
        {
            self.inverse_frequencies = long;
        }
    }

    /// Cosines and sines for `positions` into `cos` and `sin`, each `(positions, frequencies)`. Computed per step: a
    /// table for a context of 128 k would hold 64 MB for a few microseconds' worth of work.
    pub(crate) fn fill(&self, positions: &[u32], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        cos.clear();
        sin.clear();
        for &position in positions {
            for frequency in &self.inverse_frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c * self.magnitude);
                sin.push(s * self.magnitude);
            }
        }
    }
}

impl Scaling {
    fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original_context / high_freq_factor {
                    frequency
                } else if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    /// Refuses factors that would make frequencies infinite, negative or NaN, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let fine = |x: f32| x.is_finite() && x > 0.0;
        match *self {
            Self::None => Ok(()),
            Self::Linear { factor } if fine(factor) => Ok(()),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
                if [factor, low_freq_factor, high_freq_factor, original_context].into_iter().all(fine)
                    && high_freq_factor > low_freq_factor =>
            {
                Ok(())
            }
            _ => Err(format!("RoPE scaling has impossible factors: {self:?}")),
        }
    }
}
