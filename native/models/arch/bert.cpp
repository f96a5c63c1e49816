// BERT (Devlin et al. 2018) and the encoders that differ from it in names and details: RoBERTa and XLM-RoBERTa
// (positions start after the padding id), MPNet (a bias by relative distance, no token types), DistilBERT.
#include "base/error.h"
#include "models/config.h"

namespace conan {

namespace {

TransformerConfig encoder(const ConfigReader& config) {
  TransformerConfig c = read_sizes(config);
  c.type_vocab_size = config.integer("type_vocab_size", 2);
  c.norm_eps = float(config.positive("layer_norm_eps", 1e-12));
  c.activation = read_activation(config, "hidden_act", "gelu");
  const std::string positions = config.string("position_embedding_type", "absolute");
  if (positions != "absolute")
    fail("UNSUPPORTED_ARCHITECTURE", config.subject(), ": \"position_embedding_type\": expected \"absolute\", got \"", positions, "\"");
  return c;
}

/// What follows from the sizes.
TransformerConfig complete(const ConfigReader& config, TransformerConfig c) {
  divide_heads(config, c);
  c.layer.resize(size_t(c.layers));
  return c;
}

TensorNames bert_names() {
  TensorNames n;
  n.token_embedding = "embeddings.word_embeddings";
  n.position_embedding = "embeddings.position_embeddings";
  n.type_embedding = "embeddings.token_type_embeddings";
  n.embedding_norm = "embeddings.LayerNorm";
  n.layers = "encoder.layer.";
  n.qkv = {"encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.key", "encoder.layer.{}.attention.self.value"};
  n.output = "encoder.layer.{}.attention.output.dense";
  n.attention_norm = "encoder.layer.{}.attention.output.LayerNorm";
  n.mlp_in = {"encoder.layer.{}.intermediate.dense"};
  n.mlp_out = "encoder.layer.{}.output.dense";
  n.mlp_norm = "encoder.layer.{}.output.LayerNorm";
  return n;
}

TransformerConfig read_bert(const ConfigReader& config) {
  TransformerConfig c = complete(config, encoder(config));
  c.names = bert_names();
  return c;
}

/// A table of positions that begin behind the row of the padding token.
void begin_behind(const ConfigReader& config, TransformerConfig& c, int64_t pad) {
  if (c.max_positions <= pad + 1)
    fail("CONFIG_INVALID", config.subject(), ": \"max_position_embeddings\": expected more than ", pad + 1,
         ", as positions begin behind the padding token's ", pad, ", got ", c.max_positions);
  c.pad_id = int(pad);
  c.position_offset = c.pad_id + 1;
  c.max_positions -= c.position_offset;
}

TransformerConfig read_roberta(const ConfigReader& config) {
  TransformerConfig c = read_bert(config);
  begin_behind(config, c, config.integer("pad_token_id", 1, 0));
  return c;
}

TransformerConfig read_mpnet(const ConfigReader& config) {
  TransformerConfig c = complete(config, encoder(config));
  begin_behind(config, c, 1);  // whatever its padding token
  c.relative_buckets = int(config.integer("relative_attention_num_buckets", 32));
  c.names = bert_names();
  c.names.type_embedding = "";
  c.names.relative_bias = "encoder.relative_attention_bias";
  c.names.qkv = {"encoder.layer.{}.attention.attn.q", "encoder.layer.{}.attention.attn.k", "encoder.layer.{}.attention.attn.v"};
  c.names.output = "encoder.layer.{}.attention.attn.o";
  c.names.attention_norm = "encoder.layer.{}.attention.LayerNorm";
  return c;
}

TransformerConfig read_distilbert(const ConfigReader& config) {
  TransformerConfig c;
  c.vocab_size = config.integer("vocab_size");
  c.hidden = config.integer("dim");
  c.layers = config.layers("n_layers");
  c.heads = c.kv_heads = config.integer("n_heads");
  c.intermediate = config.integer("hidden_dim");
  c.max_positions = config.integer("max_position_embeddings");
  c.activation = read_activation(config, "activation", "gelu");
  c = complete(config, c);
  TensorNames& n = c.names;
  n.token_embedding = "embeddings.word_embeddings";
  n.position_embedding = "embeddings.position_embeddings";
  n.embedding_norm = "embeddings.LayerNorm";
  n.layers = "transformer.layer.";
  n.qkv = {"transformer.layer.{}.attention.q_lin", "transformer.layer.{}.attention.k_lin", "transformer.layer.{}.attention.v_lin"};
  n.output = "transformer.layer.{}.attention.out_lin";
  n.attention_norm = "transformer.layer.{}.sa_layer_norm";
  n.mlp_in = {"transformer.layer.{}.ffn.lin1"};
  n.mlp_out = "transformer.layer.{}.ffn.lin2";
  n.mlp_norm = "transformer.layer.{}.output_layer_norm";
  return c;
}

}  // namespace

const Architecture arch_bert = {{"bert"}, read_bert};
const Architecture arch_roberta = {{"roberta", "xlm-roberta", "camembert"}, read_roberta};
const Architecture arch_mpnet = {{"mpnet"}, read_mpnet};
const Architecture arch_distilbert = {{"distilbert"}, read_distilbert};

}  // namespace conan
