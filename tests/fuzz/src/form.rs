//! What the inputs of a target are, and how such an input is changed so that it mostly stays one.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::items::{Items, Layout};
use crate::{blind, cbor, text, zmtp};

/// What the inputs of a target are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Bytes of which nothing is known.
    Bytes,
    /// Text.
    Text,
    /// One CBOR item.
    Cbor,
    /// Some bytes, the lengths of some parts, and the parts, of which many are CBOR; that once or again and again.
    Items(Layout),
    /// So many bytes, and ZMTP frames.
    Zmtp(usize),
}

/// One of so many inputs is changed blindly.
const BLIND: u32 = 4;
/// At most so many changes are made to one.
const CHANGES: usize = 4;

/// Makes inputs out of those of a corpus.
pub(crate) struct Changer<'a> {
    form: Form,
    corpus: &'a [Vec<u8>],
    /// Parts of the inputs, to be put in the place of others.
    parts: Parts,
}

#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) tokens: Vec<String>,
    pub(crate) values: Vec<ciborium::Value>,
}

impl<'a> Changer<'a> {
    pub(crate) fn new(form: Form, corpus: &'a [Vec<u8>]) -> Self {
        let mut parts = Parts::default();
        for input in corpus {
            match form {
                Form::Text => {
                    let input = String::from_utf8_lossy(input);
                    parts.tokens.extend(text::tokens(&input).map(ToOwned::to_owned));
                }
                Form::Cbor => parts.values.extend(cbor::read(input)),
                Form::Items(layout) => {
                    for item in Items::read(layout, input).items {
                        parts.values.extend(item.parts.iter().filter_map(|part| cbor::read(part)));
                    }
                }
                Form::Bytes | Form::Zmtp(_) => {}
            }
        }
        Self { form, corpus, parts }
    }

    /// A changed copy of an input.
    pub(crate) fn changed(&mut self, random: &mut SmallRng) -> Vec<u8> {
        let mut input = self.corpus.choose(random).cloned().unwrap_or_default();
        let changes = random.random_range(1..=CHANGES);
        if self.form == Form::Bytes || random.random_ratio(1, BLIND) {
            for _ in 0..changes {
                blind::change(&mut input, self.corpus, random);
            }
            return input;
        }
        match self.form {
            Form::Text => {
                let mut text = String::from_utf8_lossy(&input).into_owned();
                for _ in 0..changes {
                    text::change(&mut text, &self.parts.tokens, random);
                }
                text.into_bytes()
            }
            Form::Cbor => changed_cbor(&input, changes, &self.parts, self.corpus, random),
            Form::Items(layout) => {
                let mut items = Items::read(layout, &input);
                for _ in 0..changes {
                    let other = self.corpus.choose(random).map_or(&[][..], Vec::as_slice);
                    items.change(other, &self.parts, random);
                }
                items.write(random)
            }
            Form::Zmtp(before) => {
                let other = self.corpus.choose(random).map_or(&[][..], Vec::as_slice);
                zmtp::changed(&input, other, before, changes, random)
            }
            Form::Bytes => input,
        }
    }
}

/// CBOR with other values in it; what is no CBOR is changed blindly.
pub(crate) fn changed_cbor(
    input: &[u8],
    changes: usize,
    parts: &Parts,
    others: &[Vec<u8>],
    random: &mut SmallRng,
) -> Vec<u8> {
    let Some(mut value) = cbor::read(input) else {
        let mut input = input.to_vec();
        blind::change(&mut input, others, random);
        return input;
    };
    for _ in 0..changes {
        cbor::change(&mut value, &parts.values, random);
    }
    cbor::write(&value)
}
