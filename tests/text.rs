//! Prompts become the tokens and embeddings of transformers and diffusers.
#[path = "fixtures/pipeline/mod.rs"]
mod pipeline;

use candle_core::{DType, Device};
use pipeline::Expected;
use seg4diff::config::TextEncoderKind::{self, ClipG, ClipL, T5};
use seg4diff::model::text::TextEncoders;
use seg4diff::model::text::tokenizer::{CLIP_TEXT, CLIP_TOKENS, TextTokenizer};
use seg4diff::model::weights::files::ModelFiles;

const T5_TOKENS: usize = 160;

fn open() -> ModelFiles {
    ModelFiles::open(pipeline::folder().join("pipeline").to_str().unwrap()).unwrap()
}

fn encoders(kinds: &[TextEncoderKind]) -> TextEncoders {
    // The fixture without T5 has 77 zero tokens.
    let tokens = if kinds.contains(&T5) { T5_TOKENS } else { 77 };
    TextEncoders::load(&open(), kinds, tokens, DType::F32, &Device::Cpu).unwrap()
}

fn encode(kinds: &[TextEncoderKind]) -> seg4diff::model::text::TextEmbedding {
    let prompts: Vec<String> = pipeline::json("prompts");
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    encoders(kinds).encode(&prompts).unwrap()
}

#[test]
fn clip_tokens_are_those_of_transformers() {
    let texts: Vec<String> = pipeline::json("texts");
    let folders = [("clip_l", "pipeline/tokenizer"), ("clip_g", "pipeline/tokenizer_2"), ("clip_l", "tokenizer_json")];
    for (key, folder) in folders {
        let tokenizer = TextTokenizer::open_clip(&pipeline::folder().join(folder)).unwrap();
        let expected: Vec<Vec<u32>> = pipeline::json(key);
        for (text, expected) in texts.iter().zip(expected) {
            assert_eq!(tokenizer.encode(text, CLIP_TOKENS).unwrap(), expected, "{folder}: {text:?}");
        }
    }
}

#[test]
fn words_alone_are_tokenised_without_frame() {
    let tokenizer = TextTokenizer::open_clip(&pipeline::folder().join("pipeline/tokenizer")).unwrap();
    let texts: Vec<String> = pipeline::json("texts");
    let expected: Vec<Vec<u32>> = pipeline::json("words");
    for (text, expected) in texts.iter().zip(expected) {
        assert_eq!(tokenizer.encode_text(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn t5_tokens_are_those_of_transformers() {
    let tokenizer = TextTokenizer::open_t5(&pipeline::folder().join("pipeline/tokenizer_3")).unwrap();
    let texts: Vec<String> = pipeline::json("texts");
    let expected: Vec<Vec<u32>> = pipeline::json("t5");
    for (text, expected) in texts.iter().zip(expected) {
        assert_eq!(tokenizer.encode(text, 40).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn spans_of_names_are_where_the_prompt_has_their_tokens() {
    let tokenizer = TextTokenizer::open_clip(&pipeline::folder().join("pipeline/tokenizer")).unwrap();
    let names = ["traffic light", "Dog", "", "hot dog", "zebra's"];
    let prompt = tokenizer.encode(&names.join(" "), CLIP_TOKENS).unwrap();
    let spans = tokenizer.token_spans(&names, CLIP_TEXT).unwrap();
    for (name, span) in names.iter().zip(&spans) {
        match span {
            Some(span) => assert_eq!(prompt[span.clone()], tokenizer.encode_text(name).unwrap()[..], "{name}"),
            None => assert_eq!(*name, "", "only the empty name has no place"),
        }
    }
    // 75 tokens fit: the 38th name of two tokens would be cut, and no name after it has a span.
    let many = vec!["traffic light"; 40];
    let spans = tokenizer.token_spans(&many, CLIP_TEXT).unwrap();
    assert_eq!(spans[36], Some(73..75));
    assert_eq!(spans[37..], [const { None }; 3]);
    let exact = [vec!["traffic light"; 37], vec!["dog", "dog"]].concat();
    let spans = tokenizer.token_spans(&exact, CLIP_TEXT).unwrap();
    assert_eq!(spans[37..], [Some(CLIP_TOKENS - 2..CLIP_TOKENS - 1), None]);
}

#[test]
fn embeddings_without_t5_are_those_of_diffusers() {
    let expected = Expected::load();
    let found = encode(&[ClipL, ClipG]);
    expected.assert_close("context", &found.context, 1e-5);
    expected.assert_close("pooled", &found.pooled, 1e-5);
}

#[test]
fn embeddings_with_t5_are_those_of_diffusers() {
    let expected = Expected::load();
    let found = encode(&[ClipL, ClipG, T5]);
    expected.assert_close("context_t5", &found.context, 1e-5);
    expected.assert_close("pooled", &found.pooled, 1e-5);
}

#[test]
fn a_clip_that_is_left_out_is_zeros() {
    let both = encode(&[ClipL, ClipG]);
    let one = encode(&[ClipG]);
    // The first CLIP of the fixture has 16 features and a projection of 20.
    let features = |context: &candle_core::Tensor, from, count| {
        pipeline::values(
            &context.narrow(1, 0, CLIP_TOKENS).unwrap().narrow(2, from, count).unwrap().contiguous().unwrap(),
        )
    };
    assert!(features(&one.context, 0, 16).iter().all(|v| *v == 0.0));
    assert_eq!(features(&one.context, 16, 24), features(&both.context, 16, 24));
    assert!(pipeline::values(&one.pooled.narrow(1, 0, 20).unwrap().contiguous().unwrap()).iter().all(|v| *v == 0.0));
    assert_eq!(one.context.dims(), both.context.dims());
}

#[test]
fn half_precision_weights_are_computed_in_f32() {
    let folder = pipeline::copy();
    for part in ["text_encoder", "text_encoder_2", "text_encoder_3"] {
        let file = folder.path().join(part).join("model.safetensors");
        let tensors = seg4diff::model::weights::read_all(&file).unwrap();
        let rounded = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap()));
        seg4diff::model::weights::write(&file, &rounded.collect(), &Default::default()).unwrap();
    }
    let files = ModelFiles::open(folder.path().to_str().unwrap()).unwrap();
    let encode = |dtype| {
        let encoders = TextEncoders::load(&files, &[ClipL, ClipG, T5], T5_TOKENS, dtype, &Device::Cpu).unwrap();
        encoders.encode(&["a photo of a dog", "light"]).unwrap()
    };
    let (half, full) = (encode(DType::BF16), encode(DType::F32));
    assert_eq!((half.context.dtype(), half.pooled.dtype()), (DType::F32, DType::F32));
    pipeline::assert_close("context", &half.context, &full.context, 1e-6);
    pipeline::assert_close("pooled", &half.pooled, &full.pooled, 1e-6);
}

#[test]
fn a_prompt_is_embedded_the_same_alone_and_in_a_batch() {
    let encoders = encoders(&[ClipL, ClipG, T5]);
    let batch = encoders.encode(&["a photo of a dog", "light", ""]).unwrap();
    let alone = encoders.encode(&["light"]).unwrap();
    pipeline::assert_close("context", &alone.context, &batch.context.narrow(0, 1, 1).unwrap(), 1e-6);
    pipeline::assert_close("pooled", &alone.pooled, &batch.pooled.narrow(0, 1, 1).unwrap(), 1e-6);
}
