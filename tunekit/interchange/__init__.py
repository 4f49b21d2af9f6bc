"""To and from other tools: training files of LLaMA-Factory and Axolotl, plain PEFT, merged weights, AdapterHub, model cards."""
