"""Which tasks of reasoning-gym have a scorer that was not fooled: written by benchmarks/reasoning_gym_audit.py.

83 of 106 tasks, 24 entries of each, November 2026.
"""

VERSION = "0.1.25"
PASSED = tuple(
    """
    acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation caesar_cipher
    calendar_arithmetic chain_sum circuit_logic coin_flip color_cube_rotation complex_arithmetic count_bits
    count_primes course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery
    family_relationships figlet_font fraction_simplification futoshiki game_of_life gcd group_anagrams gsm_symbolic
    isomorphic_strings jugs kakurasu knight_swap knights_knaves largest_island lcm leg_counting letter_counting
    letter_jumble mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering
    number_format number_sequence palindrome_generation palindrome_partitioning path_star polynomial_equations
    pool_matrix power_function prime_factorization products ransom_note rearc rectangle_count rotate_matrix
    rotten_oranges self_reference sentence_reordering shortest_path simple_equations simple_geometry spell_backward
    string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi
    tsumego word_ladder word_sequence_reversal word_sorting zebra_puzzles
    """.split()
)
REFUSED = {
    "ab": "of its own stored answers it takes only 95.8%",
    "binary_matrix": "its scorer evaluates the answer as code",
    "bitwise_arithmetic": "its scorer evaluates the answer as code",
    "boxnet": "it has no stored answers that its scorer could be tried with",
    "codeio": "of its own stored answers it takes only 95.8%",
    "composite": "it makes no entries by its name alone (AssertionError: Must specify at least one dataset)",
    "countdown": "its scorer evaluates the answer as code",
    "game_of_life_halting": "it gives full marks to 100.0% of a wrong answer, well written",
    "graph_color": "it has no stored answers that its scorer could be tried with",
    "intermediate_integration": "its audit did not end within 180 s",
    "list_functions": "of its own stored answers it takes only 91.7%",
    "n_queens": "its scorer evaluates the answer as code",
    "number_sorting": "its scorer evaluates the answer as code",
    "polynomial_multiplication": "its scorer evaluates the answer as code",
    "propositional_logic": "it has no stored answers that its scorer could be tried with",
    "puzzle24": "its scorer evaluates the answer as code",
    "quantum_lock": "it gives full marks to 4.3% of the most frequent answer, where it is wrong",
    "rubiks_cube": "it has no stored answers that its scorer could be tried with",
    "rush_hour": "it has no stored answers that its scorer could be tried with",
    "simple_integration": "its scorer evaluates the answer as code",
    "sokoban": "it gives full marks to 4.3% of the most frequent answer, where it is wrong",
    "spiral_matrix": "its scorer evaluates the answer as code",
    "string_insertion": "its scorer evaluates the answer as code",
}
