"""Models for and from Hugging Face's transformers 5; importing this registers them with its Auto classes"""

from transformers import AutoConfig, AutoModelForCausalLM

from equilibria.interop.hugging_face.modeling import EquilibriaConfig, EquilibriaForCausalLM

__all__ = ["EquilibriaConfig", "EquilibriaForCausalLM"]

AutoConfig.register(EquilibriaConfig.model_type, EquilibriaConfig)
AutoModelForCausalLM.register(EquilibriaConfig, EquilibriaForCausalLM)
