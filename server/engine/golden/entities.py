"""What transformers' pipeline `token-classification` makes of texts, into entities.json.

The weights are random, with labels that differ from token to token: what is checked is how tokens become words and entities,
where they lie in the text, and their scores.
"""

import json
import shutil
import warnings

import torch
from common import HERE, randomize
from encoders import SHAPE
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline

MODEL = HERE / "ner"
NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "NAMED-THING"}
STRATEGIES = ["none", "simple", "first", "average", "max"]
TEXTS = [
    "Angela Merkel besucht München.",
    "Zoë Müller-Straße,  Köln 🚀 Angela",
    "Mu\u0308nchen (decomposed) 東京 Köln",
    "\tKöln\n\nMerkel besucht Angela Merkel in Köln, München und Köln",
    "besucht",
    "   ",
]


def word_piece():
    pieces = "[PAD] [UNK] [CLS] [SEP] angela merk ##el besucht munch ##en . zoe mull ##er - stra ##ße , koln m ##u in und 東 d ##e ##c"
    pieces += " ##om ##p ##o ##s ##ed ( ) ange ##la"
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces.split())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, "[UNK]"


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=special, initial_alphabet=[], show_progress=False)
    tokenizer.train_from_iterator([TEXTS[0], TEXTS[1].replace("🚀", ""), TEXTS[3]], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return tokenizer, "<unk>"


def metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([TEXTS[0], TEXTS[3], "Angela Merkel Angela besucht München besucht Köln"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer, "<unk>"


def make_model():
    torch.manual_seed(600)
    model = BertForTokenClassification(
        BertConfig(**SHAPE, id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    ).eval()
    randomize(model, 601)
    with torch.no_grad():
        # Without this, one label would be the likeliest of nearly all tokens.
        model.classifier.weight.normal_(0, 1)
        logits = model(torch.randint(4, SHAPE["vocab_size"], (64, 16))).logits
        model.classifier.bias.sub_(logits.mean((0, 1)))
    shutil.rmtree(MODEL, ignore_errors=True)
    model.to(torch.float16).save_pretrained(MODEL)


def cases():
    make_model()
    warnings.simplefilter("ignore", UserWarning)
    model = BertForTokenClassification.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    made = []
    for make in [word_piece, byte_level, metaspace]:
        tokenizer, unknown = make()
        assert tokenizer.get_vocab_size() <= model.config.vocab_size
        name = f"tokenizer-{make.__name__.replace('_', '-')}.json"
        tokenizer.save(str(MODEL / name))
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token=unknown, model_input_names=["input_ids", "attention_mask"]
        )
        classify = pipeline("token-classification", model=model, tokenizer=fast, device="cpu")
        for text in TEXTS:
            for strategy in STRATEGIES:
                found = [
                    {key: round(float(value), 6) if key == "score" else value for key, value in entity.items()}
                    for entity in classify(text, aggregation_strategy=strategy, ignore_labels=["O"])
                ]
                made.append(dict(tokenizer=name, text=text, strategy=strategy, entities=found))
    return made


def write():
    text = json.dumps(dict(cases=cases()), ensure_ascii=False).replace('{"tokenizer"', '\n{"tokenizer"')
    (HERE / "entities.json").write_text(text + "\n")
