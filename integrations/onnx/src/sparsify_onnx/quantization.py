"""wip"""
from __future__ import annotations
import numpy as np, onnx
from onnx import numpy_helper
from sparsify_onnx.graph import *
from sparsify_onnx.graph import initializers
from sparsify_onnx.placement import place
from sparsify_onnx.histogram import *
from sparsify_onnx.ranges import *
from sparsify_onnx.rounding import *
from sparsify_onnx.qdq import *
import onnxruntime as ort
def collect(model, names, X, bs):
    m=onnx.ModelProto(); m.CopyFrom(model); have={o.name for o in m.graph.output}|{i.name for i in m.graph.input}
    m.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    s=ort.InferenceSession(m.SerializeToString()); H={n:EMPTY for n in names}; i=s.get_inputs()[0].name
    want=[n for n in names if n!=i]
    for k in range(0,len(X),bs):
        r=dict(zip(want,s.run(want,{i:X[k:k+bs]}))); r[i]=X[k:k+bs]
        for n in names: H[n]=merge(H[n],count(r[n]))
    return H
