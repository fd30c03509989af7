// Writes the few fields of an ONNX model that one layer of operators needs (onnx.proto3 of the ONNX project).

/** Element types of tensors: TensorProto.DataType. */
export const elements = { f32: 1, u8: 2, i8: 3, i32: 6 }

const text = new TextEncoder()

/** A field: [number, value], where the value is an integer, a string, bytes, or a list of fields (a message). */
function encode(fields) {
  const parts = []
  const varint = (value) => {
    const bytes = []
    let rest = BigInt(value)
    for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128)
    bytes.push(Number(rest))
    parts.push(Uint8Array.from(bytes))
  }
  for (const [number, value] of fields) {
    if (typeof value === 'number') {
      varint(number << 3)
      varint(value)
    } else {
      const bytes =
        typeof value === 'string'
          ? text.encode(value)
          : ArrayBuffer.isView(value)
            ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
            : encode(value)
      varint((number << 3) | 2)
      varint(bytes.length)
      parts.push(bytes)
    }
  }
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}

/** An initializer. `data` may be shared by several: each becomes memory of its own when the model is loaded. */
export const tensor = (name, dims, type, data) => [
  ...dims.map((dim) => [1, dim]),
  [2, elements[type]],
  [8, name],
  [9, data],
]

/** A node; its attributes are integers. */
export const node = (type, domain, inputs, outputs, attributes = {}) => [
  ...inputs.map((name) => [1, name]),
  ...outputs.map((name) => [2, name]),
  [3, outputs[0]],
  [4, type],
  ...Object.entries(attributes).map(([name, value]) => [
    5,
    [
      [1, name],
      [3, value],
      [20, 2], // AttributeProto.INT
    ],
  ]),
  [7, domain],
]

/** An input or output of the graph; a dimension may be a name, which leaves it open. */
export const value = (name, dims, type) => {
  const shape = dims.map((dim) => [1, [typeof dim === 'string' ? [2, dim] : [1, dim]]])
  return [
    [1, name],
    [
      2,
      [
        [
          1,
          [
            [1, elements[type]],
            [2, shape],
          ],
        ],
      ],
    ],
  ]
}

/** The bytes of a model of IR version 10: opset 21 of ONNX and version 1 of Microsoft's operators. */
export function model({ nodes, tensors, inputs, outputs }) {
  const opset = (domain, version) => [
    8,
    [
      [1, domain],
      [2, version],
    ],
  ]
  return encode([
    [1, 10],
    [
      7,
      [
        ...nodes.map((n) => [1, n]),
        [2, 'linear'],
        ...tensors.map((t) => [5, t]),
        ...inputs.map((v) => [11, v]),
        ...outputs.map((v) => [12, v]),
      ],
    ],
    opset('', 21),
    opset('com.microsoft', 1),
  ])
}
