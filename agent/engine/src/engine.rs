//! Runs requests on one model, in turns: each turn is one chunk of a prompt or one token of an answer of one
//! request, so nobody waits for another's whole answer, and no answer depends on who else is served.

use std::{collections::VecDeque, error::Error, path::Path};

use cocoon_protocol::{
    NumericProfile, TokenCounts,
    engine::{Fault, FinishReason, FromEngine, Message, Sampling},
};
use tch::{Kind, TchError};

use crate::{
    config::{ConfigError, ModelConfig},
    model::{KvCache, Model},
    sampling::Sampler,
    template::{ChatTemplate, TemplateError},
    text::{Detokenizer, StopStrings, Text, TokenizerError},
    weights::{Weights, WeightsError},
};

/// Prompt tokens of one turn: long enough for matrix products to be efficient, short enough not to be felt by
/// the others.
const PREFILL_TOKENS: usize = 256;
/// OpenAI allows 4 stop strings.
const STOP_STRINGS_MAX: usize = 16;
/// Longer ones would hold text back for long.
const STOP_STRING_BYTES_MAX: usize = 1024;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its configuration.
    #[error("the model's configuration cannot be used")]
    Config(#[from] ConfigError),
    /// Its tensors.
    #[error("the model's weights cannot be used")]
    Weights(#[from] WeightsError),
    /// Its tokenizer.
    #[error("the model's tokenizer cannot be used")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template.
    #[error("the model's chat template cannot be used")]
    Template(#[from] TemplateError),
    /// The launch document promises a longer context than the model has.
    #[error(
        "a context of {asked} tokens was asked for, the model has at most {positions_max}; lower limits.context_tokens_max"
    )]
    Context {
        /// In the launch document.
        asked: u32,
        /// In config.json.
        positions_max: u32,
    },
    /// A first forward pass did not work.
    #[error("the model cannot be run")]
    Run(#[source] TchError),
    /// A first forward pass gave no numbers.
    #[error(
        "the model's first logits are not finite: the weights are damaged, or too large for this number format"
    )]
    NotFinite,
}

impl LoadError {
    /// The error with its causes, in one line.
    pub fn reason(&self) -> String {
        let (mut reason, mut cause) = (self.to_string(), self.source());
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        reason
    }
}

/// A loaded model and the requests that run on it.
pub struct Engine {
    model: Model,
    text: Text,
    template: ChatTemplate,
    stop_tokens: Vec<u32>,
    context_tokens_max: usize,
    requests_max: usize,
    /// Whose turn it is comes first.
    running: VecDeque<Running>,
}

struct Running {
    id: u64,
    prompt: Vec<u32>,
    cache: KvCache,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// The newest token, which is not in the cache yet.
    last: u32,
    output_tokens: u64,
    output_tokens_max: u64,
}

/// Why one request ends without an answer.
struct Failure {
    fault: Fault,
    reason: String,
}

impl Failure {
    fn client(reason: impl Into<String>) -> Self {
        Self {
            fault: Fault::Client,
            reason: reason.into(),
        }
    }

    fn engine(reason: impl Into<String>) -> Self {
        Self {
            fault: Fault::Engine,
            reason: reason.into(),
        }
    }

    fn into_event(self, id: u64) -> FromEngine {
        FromEngine::Failed {
            id,
            fault: self.fault,
            reason: self.reason,
        }
    }
}

impl Engine {
    /// Loads a Hugging Face folder of a Qwen3 and tries it once.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        folder: &Path,
        profile: NumericProfile,
        context_tokens_max: u32,
        requests_max: u32,
    ) -> Result<Self, LoadError> {
        let config = ModelConfig::read(folder)?;
        if context_tokens_max > config.positions_max {
            return Err(LoadError::Context {
                asked: context_tokens_max,
                positions_max: config.positions_max,
            });
        }
        let kind = kind_of(profile);
        let text = Text::read(folder, config.vocabulary)?;
        let template = ChatTemplate::read(folder)?;
        let stop_tokens = config.stop_tokens.clone();
        let model = Model::load(config, Weights::open(folder, kind)?, kind)?;
        try_out(&model)?;
        Ok(Self {
            model,
            text,
            template,
            stop_tokens,
            context_tokens_max: context_tokens_max as usize,
            requests_max: requests_max as usize,
            running: VecDeque::new(),
        })
    }

    /// Whether nothing is running.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether this request is running.
    pub fn is_running(&self, id: u64) -> bool {
        self.running.iter().any(|request| request.id == id)
    }

    /// Starts a request; answers with [`FromEngine::Failed`] if it cannot be.
    pub fn start(&mut self, id: u64, messages: &[Message], sampling: Sampling) -> Option<FromEngine> {
        match self.prepare(id, messages, sampling) {
            Ok(request) => {
                self.running.push_back(request);
                None
            }
            Err(failure) => Some(failure.into_event(id)),
        }
    }

    /// Stops a request; `None` if it is not running (it may just have finished).
    pub fn cancel(&mut self, id: u64) -> Option<FromEngine> {
        let at = self.running.iter().position(|request| request.id == id)?;
        let request = self.running.remove(at)?;
        Some(request.finished(FinishReason::Cancelled))
    }

    /// One turn of one request: what it has to tell.
    pub fn step(&mut self) -> Vec<FromEngine> {
        let mut events = vec![];
        let Some(mut request) = self.running.pop_front() else {
            return events;
        };
        match self.advance(&mut request, &mut events) {
            Ok(None) => self.running.push_back(request),
            Ok(Some(reason)) => events.push(request.finished(reason)),
            Err(failure) => events.push(failure.into_event(request.id)),
        }
        events
    }

    fn prepare(&self, id: u64, messages: &[Message], sampling: Sampling) -> Result<Running, Failure> {
        if self.running.len() >= self.requests_max {
            return Err(Failure::engine(format!(
                "{} requests are running already",
                self.requests_max
            )));
        }
        let sampler = Sampler::new(&sampling).map_err(Failure::client)?;
        check_stop_strings(&sampling.stop)?;
        if sampling.output_tokens_max == 0 {
            return Err(Failure::client("at least one output token has to be allowed"));
        }
        let rendered = self
            .template
            .render(messages)
            .map_err(|refused| Failure::client(refused.to_string()))?;
        let limit = self.context_tokens_max;
        let prompt = self
            .text
            .encode(&rendered, limit)
            .map_err(|error| Failure::engine(error.to_string()))?;
        let too_long = |tokens| Failure {
            fault: Fault::Context,
            reason: format!(
                "the prompt has {tokens} tokens, it has to be shorter than the context of {limit}"
            ),
        };
        let prompt = prompt.ok_or_else(|| too_long(format!("more than {limit}")))?;
        if prompt.is_empty() {
            return Err(Failure::client("the prompt is empty"));
        }
        if prompt.len() >= limit {
            return Err(too_long(prompt.len().to_string()));
        }
        let output_tokens_max = (limit - prompt.len()).min(sampling.output_tokens_max as usize);
        let cache = self
            .model
            .cache(prompt.len() + output_tokens_max)
            .map_err(|_| out_of_memory())?;
        Ok(Running {
            id,
            prompt,
            cache,
            sampler,
            detokenizer: Detokenizer::default(),
            stops: StopStrings::new(sampling.stop),
            last: 0,
            output_tokens: 0,
            output_tokens_max: output_tokens_max as u64,
        })
    }

    /// Computes one turn. `None` while there is more to come.
    fn advance(
        &self,
        request: &mut Running,
        events: &mut Vec<FromEngine>,
    ) -> Result<Option<FinishReason>, Failure> {
        let done = request.cache.len();
        let left = request.prompt.len().saturating_sub(done);
        if left > PREFILL_TOKENS {
            let chunk = &request.prompt[done..done + PREFILL_TOKENS];
            self.model
                .prefill(&mut request.cache, chunk)
                .map_err(forward_failed)?;
            return Ok(None);
        }
        let logits = if left > 0 {
            let logits = self
                .model
                .last_logits(&mut request.cache, &request.prompt[done..]);
            events.push(FromEngine::Started {
                id: request.id,
                input_tokens: request.prompt.len() as u64,
            });
            logits
        } else {
            self.model.last_logits(&mut request.cache, &[request.last])
        };
        let position = request.cache.len() as u64;
        request.last = request
            .sampler
            .choose(&logits.map_err(forward_failed)?, position)
            .map_err(|error| Failure::engine(error.to_string()))?;
        request.output_tokens += 1;
        self.tell(request, events)
    }

    /// Turns the newest token into text and finds out whether it was the last.
    fn tell(
        &self,
        request: &mut Running,
        events: &mut Vec<FromEngine>,
    ) -> Result<Option<FinishReason>, Failure> {
        let stop_token = self.stop_tokens.contains(&request.last);
        let piece = if stop_token {
            String::new()
        } else {
            let piece = request.detokenizer.push(&self.text, request.last);
            piece.map_err(|error| Failure::engine(error.to_string()))?
        };
        let (mut text, stop_string) = request.stops.push(&piece);
        let reason = if stop_token || stop_string {
            Some(FinishReason::Stop)
        } else if request.output_tokens == request.output_tokens_max {
            Some(FinishReason::Length)
        } else {
            None
        };
        if reason.is_some() && !stop_string {
            text += &request.stops.rest();
        }
        if !text.is_empty() {
            events.push(FromEngine::Text {
                id: request.id,
                text,
                output_tokens: request.output_tokens,
            });
        }
        Ok(reason)
    }
}

impl Running {
    /// What was computed is counted, whether all of it was shown or not.
    fn finished(&self, reason: FinishReason) -> FromEngine {
        let input = self.cache.len().min(self.prompt.len()) as u64;
        FromEngine::Finished {
            id: self.id,
            reason,
            tokens: TokenCounts {
                input,
                output: self.output_tokens,
            },
        }
    }
}

/// A prompt of two tokens and one more: reads every weight once, so that the first client does not wait for
/// it, and finds damaged ones.
fn try_out(model: &Model) -> Result<(), LoadError> {
    let mut cache = model.cache(3).map_err(LoadError::Run)?;
    model.prefill(&mut cache, &[0, 0]).map_err(LoadError::Run)?;
    let logits = model.last_logits(&mut cache, &[0]).map_err(LoadError::Run)?;
    if logits.iter().all(|logit| logit.is_finite()) {
        Ok(())
    } else {
        Err(LoadError::NotFinite)
    }
}

pub(crate) fn kind_of(profile: NumericProfile) -> Kind {
    match profile {
        NumericProfile::F32 => Kind::Float,
        NumericProfile::Bf16 => Kind::BFloat16,
    }
}

fn check_stop_strings(stop: &[String]) -> Result<(), Failure> {
    if stop.len() > STOP_STRINGS_MAX {
        return Err(Failure::client(format!(
            "at most {STOP_STRINGS_MAX} stop strings are allowed"
        )));
    }
    if stop
        .iter()
        .any(|text| text.is_empty() || text.len() > STOP_STRING_BYTES_MAX)
    {
        return Err(Failure::client(format!(
            "a stop string has to have 1 to {STOP_STRING_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// libtorch's words stay here: they can be about anything.
fn forward_failed(_: TchError) -> Failure {
    Failure::engine("the forward pass failed, for want of memory as a rule")
}

fn out_of_memory() -> Failure {
    Failure::engine("there is no memory for this request's keys and values")
}
