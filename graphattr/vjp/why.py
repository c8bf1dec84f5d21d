"""Why an operator has no derivative, or none but zero: what `graphattr operators` and refusals say."""

from __future__ import annotations

__all__ = ["WHY"]

ZERO = {
    "is a step function: its derivative is zero wherever it has one": "Ceil Floor Hardmax Round Sign ai.onnx.ml:Binarizer",
    "gives truth values": "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor",
    "gives positions, which move in whole steps": "ArgMax ArgMin NonMaxSuppression NonZero",
    "works on bits": "BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor",
    "is drawn at random: a sample has no derivative with respect to its probabilities": "Bernoulli Multinomial",
    "is drawn at random, and takes no float but for its shape": "RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    "takes no float that its values depend on": "Constant ConstantOfShape EyeLike Shape Size",
    "makes a table from settings, not from data": "MelWeightMatrix",
}
NONE = {
    "works on text; attribute to the first float tensor behind it": (
        "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer ai.onnx.ml:CategoryMapper "
        "ai.onnx.ml:LabelEncoder"
    ),
    "decodes a compressed image; attribute to the picture behind it": "ImageDecoder",
    "is made of thresholds: its derivative is zero wherever it has one, which explains nothing (use SHAP values)": (
        "ai.onnx.ml:TreeEnsemble ai.onnx.ml:TreeEnsembleClassifier ai.onnx.ml:TreeEnsembleRegressor"
    ),
    "sums kernels over support vectors, which is not written out; export a linear model or a network": (
        "ai.onnx.ml:SVMClassifier ai.onnx.ml:SVMRegressor"
    ),
    "turns categories into numbers; attribute to the tensor behind it": (
        "ai.onnx.ml:CastMap ai.onnx.ml:DictVectorizer ai.onnx.ml:OneHotEncoder"
    ),
    "works on a sequence or an optional whose members are known at run time only; give the model tensors in its place": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength SplitToSequence"
    ),
    "gives maps of labels; explain the scores before it (output=...)": "ai.onnx.ml:ZipMap",
    "is a step of training; export the model for inference": (
        "ai.onnx.preview.training:Adagrad ai.onnx.preview.training:Adam ai.onnx.preview.training:Gradient "
        "ai.onnx.preview.training:Momentum"
    ),
}
WHY: dict[str, str] = {op: text for table in (ZERO, NONE) for text, ops in table.items() for op in ops.split()}
"""Operator (with its domain, but for the default one) -> what it does; a clause with "it" for its subject."""
