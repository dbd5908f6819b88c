"""Text that a target writes itself, many rows at once, with its features: what drafters for it learn from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from specquant.progress import tqdm
from specquant.training.conversations import Turns
from specquant.training.sample import NOT_GIVEN

FREE = -1  # in a script: the model writes what follows
# cuDNN's attention, which torch prefers on Hopper, plans anew for every number of keys: 50 ms at each token.
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Writing:
    """How rows are written.

    Attributes:
        row_length: Tokens of a row; conversations go on until it is full.
        question_tokens: The most of a user's turn.
        answer_tokens: The most of an answer: greedy ones may repeat themselves for ever.
        question_temperature: Of what users say: high, for many different questions.
        greedy_share: Of rows whose answers are greedy.
        coldest, hottest: Temperatures of the other rows' answers, evenly between.
    """

    row_length: int = 1024
    question_tokens: int = 128
    answer_tokens: int = 384
    question_temperature: float = 0.9
    greedy_share: float = 0.5
    coldest: float = 0.4
    hottest: float = 1.0

    def temperatures(self, rows: int, seed: int) -> torch.Tensor:
        """Of each row's answers, [rows], in random order."""
        greedy = round(self.greedy_share * rows)
        values = torch.cat((torch.zeros(greedy), torch.linspace(self.coldest, self.hottest, rows - greedy)))
        return values[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))]


@dataclass(frozen=True)
class Rows:
    """Rows of text: tokens [rows, n], int32; which of them the target wrote as an answer, bool [rows, n]; its features,
    fp16 [rows, n, hidden]."""

    tokens: torch.Tensor
    answers: torch.Tensor
    features: torch.Tensor


class Conversation:
    """The state of all rows' conversations: whose turn it is, how long it is, and which tokens of the chat template are
    still to come. Nothing waits for the device.

    given: [rows, n], tokens that rows begin with; shorter ones end in NOT_GIVEN.
    asks: [rows], whether a row's first turn is a user's that the model writes.
    """

    def __init__(self, turns: Turns, writing: Writing, given: torch.Tensor, asks: torch.Tensor, temperatures):
        self.writing, self.given, self.asks = writing, given, asks
        device = given.device
        chat = bool(turns.to_answer)
        script = [*turns.to_answer[1:], FREE, *turns.to_user[1:], FREE]
        self.script = torch.tensor(script, device=device)
        self.place = torch.full_like(given[:, 0], len(script) - 1)
        # By whose turn ends: the answer's, the user's. Without a chat template one text follows another.
        self.begins = torch.tensor([len(turns.to_answer[1:]) + 1, 0], device=device)
        self.closing = torch.tensor([turns.to_user[0], turns.to_answer[0] if chat else turns.to_user[0]], device=device)
        most = [writing.answer_tokens if chat else writing.row_length, writing.question_tokens]
        self.most = torch.tensor(most, device=device)
        self.ends = torch.tensor([*turns.ends, *turns.to_answer[:1]], device=device)
        self.turn_length = torch.zeros_like(self.place)
        self.chat, self.temperatures = chat, temperatures

    def next(self, logits: torch.Tensor, position: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' next tokens, [rows], after logits [rows, vocabulary]; and which of them are parts of answers."""
        temperatures = torch.where(self.asks, self.writing.question_temperature, self.temperatures)
        noise = torch.empty_like(logits).exponential_(generator=random).clamp_(min=1e-10).log_()
        written = (logits - temperatures[:, None] * noise).argmax(-1)  # a draw at each row's temperature (Gumbel)
        scripted = self.script[self.place]
        free = scripted == FREE
        tokens = torch.where(free, written, scripted)
        self.place += (~free).long()
        if position < self.given.shape[1]:
            given = self.given[:, position]
            free &= given == NOT_GIVEN
            tokens = torch.where(given == NOT_GIVEN, tokens, given)
        whose = self.asks.long()
        self.turn_length += free.long()
        stops = free & torch.isin(written, self.ends)
        over = free & ~stops & (self.turn_length >= self.most[whose])
        answered = free & ~self.asks & ~over
        ended = stops | over
        tokens = torch.where(ended, self.closing[whose], tokens)
        self.place = torch.where(ended, self.begins[whose], self.place)
        self.turn_length.masked_fill_(ended, 0)
        if self.chat:
            self.asks = self.asks ^ ended
        return tokens, answered


@torch.no_grad()
def write(
    model: PreTrainedModel,
    turns: Turns,
    writing: Writing,
    given: torch.Tensor,
    asks: torch.Tensor,
    seed: int,
    name: str = "the target writes",
) -> Rows:
    """Have a model write rows of conversations.

    Args:
        model: As `load_trainable` gives it.
        turns: What stands around turns.
        writing: How long rows and turns are, and at which temperatures.
        given: What rows begin with, int64 [rows, n]; shorter beginnings end in NOT_GIVEN.
        asks: Whether a row's first turn is a user's that the model writes, bool [rows].
        seed: Decides about everything that is drawn.
        name: What the progress bar calls it.

    Returns:
        The rows, on the model's device.
    """
    rows, length = len(given), writing.row_length
    device = model.device
    given, asks = given[:, : length - 1].to(device), asks.to(device)
    talk = Conversation(turns, writing, given, asks, writing.temperatures(rows, seed).to(device))
    random = torch.Generator(device).manual_seed(seed)
    tokens = torch.empty(rows, length, dtype=torch.int32, device=device)
    answers = torch.zeros(rows, length, dtype=torch.bool, device=device)
    features = torch.empty(rows, length, model.config.hidden_size, dtype=torch.float16, device=device)
    cache = Cache(layers=[PreparedLayer(length) for _ in range(model.config.num_hidden_layers)])
    known = int((given != NOT_GIVEN).all(dim=0).long().cumprod(0).sum())
    tokens[:, :known] = given[:, :known]
    with grouped_attention(model), sdpa_kernel(WITHOUT_PLANS):
        states = model.model(input_ids=given[:, :known], past_key_values=cache).last_hidden_state
        features[:, :known] = states
        for position in tqdm(range(known, length), desc=name, unit="token", mininterval=2):
            logits = model.lm_head(states[:, -1]).float()
            new, answered = talk.next(logits, position, random)
            tokens[:, position], answers[:, position] = new, answered
            states = model.model(input_ids=new[:, None], past_key_values=cache).last_hidden_state
            features[:, position] = states[:, 0]
    return Rows(tokens, answers, features)


class PreparedLayer(DynamicLayer):
    """One layer's cache with room for a whole row from the beginning: transformers' own copies it at every token."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        shape = (*key_states.shape[:2], self.length, key_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.room = key_states.new_empty(shape), value_states.new_empty(shape)
        self.keys, self.values = (room[:, :, :0] for room in self.room)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.keys.shape[-2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, used : used + states.shape[-2]] = states
        self.keys, self.values = (room[:, :, : used + key_states.shape[-2]] for room in self.room)
        return self.keys, self.values


class grouped_attention:
    """Meanwhile, a model's attention of one token reads the keys of a group of heads once, not once for each head."""

    def __init__(self, model: PreTrainedModel):
        self.config = model.config

    def __enter__(self) -> None:
        self.before = self.config._attn_implementation
        self.config._attn_implementation = "specquant_grouped"

    def __exit__(self, *error) -> None:
        self.config._attn_implementation = self.before


def _grouped(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **others):
    rows, heads, new, size = query.shape
    if new > 1 or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    query = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    output = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


AttentionInterface.register("specquant_grouped", _grouped)
AttentionMaskInterface.register("specquant_grouped", sdpa_mask)
