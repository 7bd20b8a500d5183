"""A program's text, widened."""

from coreai_recipes.aimodel.twin import widened

PROGRAM = """\
module {
  coreai.graph private noinline @layer_full_1(%arg0: tensor<1x8xf16> {coreai.name = "x"}) -> (tensor<1x8xf16> {coreai.name = "y"}) {
    %0 = coreai.constant dense<1.767580e-01> : tensor<f16>
    %1 = coreai.decomposable.broadcasting_mul %arg0, %0 : (tensor<1x8xf16>, tensor<f16>) -> tensor<1x8xf16>
    coreai.output %1 : tensor<1x8xf16>
  }
  coreai.graph @decode(%arg0: tensor<1xsi32> {coreai.name = "position"}) -> (tensor<1x8xf16> {coreai.name = "logits"}) {
    %0 = coreai.constant dense_resource<w> : tensor<1x8xf16>
    %1 = coreai.constant dense_resource<w_indices> : tensor<1x8xui4>
    %2 = coreai.constant dense_resource<w_lut> : tensor<1x16xf16>
    %3 = coreai.constant dense<0> : tensor<si16>
    %4 = coreai.lut_to_dense %1, %2, %3 : (tensor<1x8xui4>, tensor<1x16xf16>, tensor<si16>) -> tensor<1x8xf16>
    %5 = coreai.invoke @layer_full_1(%0)  : (tensor<1x8xf16>) -> tensor<1x8xf16>
    coreai.output %5 : tensor<1x8xf16>
  }
}
"""  # noqa: E501
WIDENED = """\
module {
  coreai.graph private noinline @layer_full_1(%arg0: tensor<1x8xf32> {coreai.name = "x"}) -> (tensor<1x8xf32> {coreai.name = "y"}) {
    %stored0 = coreai.constant dense<1.767580e-01> : tensor<f16>
    %0 = coreai.cast %stored0 : tensor<f16> to tensor<f32>
    %1 = coreai.decomposable.broadcasting_mul %arg0, %0 : (tensor<1x8xf32>, tensor<f32>) -> tensor<1x8xf32>
    coreai.output %1 : tensor<1x8xf32>
  }
  coreai.graph @decode(%arg0: tensor<1xsi32> {coreai.name = "position"}) -> (tensor<1x8xf32> {coreai.name = "logits"}, tensor<1x8xf32> {coreai.name = "hidden_0"}) {
    %0 = coreai.constant dense_resource<w> : tensor<1x8xf32>
    %1 = coreai.constant dense_resource<w_indices> : tensor<1x8xui4>
    %2 = coreai.constant dense_resource<w_lut> : tensor<1x16xf16>
    %3 = coreai.constant dense<0> : tensor<si16>
    %stored4 = coreai.lut_to_dense %1, %2, %3 : (tensor<1x8xui4>, tensor<1x16xf16>, tensor<si16>) -> tensor<1x8xf16>
    %4 = coreai.cast %stored4 : tensor<1x8xf16> to tensor<1x8xf32>
    %5 = coreai.invoke @layer_full_1(%0)  : (tensor<1x8xf32>) -> tensor<1x8xf32>
    coreai.output %5, %5 : tensor<1x8xf32>, tensor<1x8xf32>
  }
}
"""  # noqa: E501


def test_all_is_float32_but_what_weights_are_made_of() -> None:
    lines, wide = widened(PROGRAM)
    assert "\n".join(lines) == WIDENED.rstrip("\n")
    assert wide == {"w"}
